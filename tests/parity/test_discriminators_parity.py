"""The discriminators, their losses and the mel spectrogram against PyTorch, gradients too."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_discriminators import TorchDiscriminators, torch_log_mel  # noqa: E402

from spirit_jax import checkpoint  # noqa: E402
from spirit_jax.models import discriminators  # noqa: E402
from spirit_jax.models.discriminators import DiscriminatorConfig, Discriminators  # noqa: E402
from spirit_jax.models.frames import MelConfig, log_mel  # noqa: E402

CONFIG = DiscriminatorConfig(
    periods=(2, 3),
    period_channels=(4, 6, 8),
    scales=2,
    scale_channels=(4, 8, 8),
    scale_kernels=(15, 21, 5),
    scale_strides=(1, 4, 1),
    scale_groups=(1, 4, 1),
)
PARTS = {"bias": "bias", "scale": "weight.original0", "kernel": "weight.original1"}


def to_jax(network):
    """The parameters of the PyTorch network as a tree of the JAX network."""
    leaves = {}
    names = [f"period{period}" for period in CONFIG.periods]
    names += [f"scale{i}" for i in range(CONFIG.scales)]
    parts = [*network.multi_period, *network.multi_scale]
    for name, part in zip(names, parts, strict=True):
        convs = {f"conv{i}": conv for i, conv in enumerate(part.convs)} | {"out": part.out}
        for conv_name, conv in convs.items():
            direction = conv.parametrizations.weight.original1.detach()  # (d, c, k) or (d, c, k, 1)
            direction = direction.reshape(*direction.shape[:3]).permute(2, 1, 0)
            leaves[f"{name}/{conv_name}/kernel"] = direction[None].numpy().copy()
            length = conv.parametrizations.weight.original0.detach()
            leaves[f"{name}/{conv_name}/scale"] = length.flatten().numpy().copy()
            leaves[f"{name}/{conv_name}/bias"] = conv.bias.detach().numpy().copy()
    return checkpoint.unflatten(leaves)


@pytest.fixture(scope="module")
def waves():
    rng = np.random.default_rng(0)
    samples = 1000  # which 3 does not divide
    return rng.uniform(-1, 1, (2, 2, samples)).astype(np.float32)


def test_scores_features_losses_and_gradients_equal_pytorch(waves):
    torch.manual_seed(0)
    network = TorchDiscriminators(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5).add_(0.02)
    model, params = Discriminators(CONFIG), to_jax(network)
    shapes = jax.eval_shape(model.init, jax.random.key(0), waves[0])["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)

    real, generated = (torch.from_numpy(wave) for wave in waves)
    generated.requires_grad_()
    real_scores, real_features = network(real)
    generated_scores, generated_features = network(generated)
    torch_losses = {
        "discriminator": sum(
            ((r - 1) ** 2).mean() + (g**2).mean()
            for r, g in zip(real_scores, generated_scores, strict=True)
        ),
        "adversarial": sum(((g - 1) ** 2).mean() for g in generated_scores),
        "feature": sum(
            (r.detach() - g).abs().mean()
            for real_layers, generated_layers in zip(real_features, generated_features, strict=True)
            for r, g in zip(real_layers, generated_layers, strict=True)
        ),
    }

    @jax.jit
    @functools.partial(jax.jacrev, argnums=(0, 1), has_aux=True)  # all gradients in one program
    def gradients_and_losses(params, generated):
        real_scores, real_features = model.apply({"params": params}, waves[0])
        generated_scores, generated_features = model.apply({"params": params}, generated)
        losses = {
            "discriminator": discriminators.discriminator_loss(real_scores, generated_scores),
            "adversarial": discriminators.adversarial_loss(generated_scores),
            "feature": discriminators.feature_loss(real_features, generated_features),
        }
        return losses, losses

    gradients, jax_losses = gradients_and_losses(params, waves[1])
    for name, loss in torch_losses.items():
        np.testing.assert_allclose(jax_losses[name], loss.item(), rtol=1e-5)
        _, gradient = gradients[name]
        (expected,) = torch.autograd.grad(loss, generated, retain_graph=True)
        worst = np.abs(gradient - expected.numpy()).max()
        assert worst <= 1e-5 * np.abs(expected.numpy()).max()
    torch_losses["discriminator"].backward()
    expected = network.multi_period[1].convs[1].parametrizations.weight
    conv1 = gradients["discriminator"][0]["period3"]["conv1"]
    for name, other in (("scale", expected.original0.grad), ("kernel", expected.original1.grad)):
        other = other.numpy().reshape(*other.shape[:3])
        other = other.flatten() if name == "scale" else other.transpose(2, 1, 0)[None]
        assert np.abs(conv1[name] - other).max() <= 1e-5 * np.abs(other).max()


def test_initial_parameters_are_distributed_as_in_pytorch():
    torch.manual_seed(0)
    torch_params = checkpoint.flatten(to_jax(TorchDiscriminators(CONFIG)))
    model = Discriminators(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1000), np.float32))["params"]
    for part in ("kernel", "scale"):
        values = [
            np.concatenate([np.ravel(leaf) for name, leaf in leaves.items() if part in name])
            for leaves in (checkpoint.flatten(params), torch_params)
        ]
        np.testing.assert_allclose(np.std(values[0]), np.std(values[1]), rtol=0.1)
        np.testing.assert_allclose(np.abs(values[0]).max(), np.abs(values[1]).max(), rtol=0.1)


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(16000, 256, 64, 20, 80.0, 7600.0)])
def test_mel_and_its_gradient_equal_pytorch(config):
    rng = np.random.default_rng(0)
    wave = (0.3 * rng.standard_normal((2, 8960))).astype(np.float32)
    wave[1, 3000:] = 0
    wave_in = torch.from_numpy(wave).requires_grad_()
    torch_mel = torch_log_mel(wave_in, config)
    mel = log_mel(wave, config)
    assert mel.shape == (2, 8960 // config.hop, config.num_mels)
    np.testing.assert_allclose(mel, torch_mel.detach().numpy().transpose(0, 2, 1), atol=1e-4)
    weights = rng.standard_normal(mel.shape).astype(np.float32)
    gradient = jax.grad(lambda wave: (log_mel(wave, config) * weights).sum())(wave)
    (torch_mel * torch.from_numpy(weights.transpose(0, 2, 1))).sum().backward()
    expected = wave_in.grad.numpy()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient - expected).max() <= 1e-4 * np.abs(expected).max()
