"""The page: its event, what it shows, and the page in a real browser."""

import asyncio
import http.client
import io
import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

gradio = pytest.importorskip("gradio", reason="the extra serve is not installed")

import gradio_client  # noqa: E402
import soundfile  # noqa: E402
from servers import serving, wait_until  # noqa: E402

from spirit_jax import SpiritLM, model_folder, pictures  # noqa: E402
from spirit_jax.audio import load_audio  # noqa: E402
from spirit_jax.serving import page  # noqa: E402
from spirit_jax.serving.encoding import to_int16  # noqa: E402

QUESTION = model_folder.ASSETS / "question.flac"
WORDS = "what is two plus two"
# Where the browser test writes what it sees; for docs.
SCREENSHOTS = os.environ.get("SPIRIT_SCREENSHOTS")


@pytest.fixture(scope="module")
def lm():
    return SpiritLM.from_pretrained("spirit-tiny-base")


@pytest.fixture(scope="module")
def served(lm, tmp_path_factory):
    """The page behind a prefix, which a proxy removes."""
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        with serving(lm, with_page=True, root_path="/spirit") as (address, service):
            with proxy(address) as port:
                yield f"http://127.0.0.1:{port}/spirit/", service


class proxy:
    """A server that publishes another one under /spirit."""

    def __init__(self, address: str):
        host = address.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *args):
                pass

            def do_GET(self):
                assert self.path.startswith("/spirit/"), f"{self.path} lost its prefix"
                connection = http.client.HTTPConnection(host)
                data = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = dict(self.headers) | {"x-forwarded-host": self.headers["host"]}
                path = self.path.removeprefix("/spirit")
                connection.request(self.command, path, data, headers)
                response = connection.getresponse()
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                while part := response.read1(1 << 16):
                    self.wfile.write(part)
                connection.close()

            do_POST = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> int:
        self._thread.start()
        return self._server.server_port

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def show(service, *inputs) -> page.State:
    """The last state of the page."""

    async def read():
        async for state in page.answer_on_page(service, *inputs):
            last = state
        return last

    return asyncio.run(read())


@pytest.mark.slow
def test_the_event_works_behind_a_prefix(served, lm):
    address, _ = served
    client = gradio_client.Client(address, verbose=False)
    job = [page.READ, "turn on the lights", None, "rms", "sad", 300, 0, 1, 0]
    text, speech, tokens, picture = client.predict(*job, api_name="/answer")
    assert text == "" and tokens.startswith("[Text]T: turn on the lights[Speech] → [Hu")
    samples, rate = soundfile.read(speech, dtype="int16")
    (expected,) = lm.generate(
        prompt="[Text]T: turn on the lights[Speech]",
        output_modality="speech",
        speaker_id="rms",
        style_id="sad",
        max_new_tokens=300,
    )
    assert rate == 16000  # one gain, and no scaling to the peak
    np.testing.assert_allclose(
        samples[: len(expected.content)] / 32768, expected.content, atol=2e-3
    )
    assert Path(picture["path"] if isinstance(picture, dict) else picture).stat().st_size > 1000


@pytest.mark.parametrize(
    "rate, channels, subtype",
    [(16000, 1, "PCM_16"), (48000, 2, "PCM_24"), (44100, 1, "PCM_32"), (16000, 2, "FLOAT"),
     (16000, 1, "PCM_U8")],
)  # fmt: skip
def test_recordings_of_any_form_are_transcribed(served, tmp_path, rate, channels, subtype):
    import soxr

    _, service = served
    wave = soxr.resample(load_audio(QUESTION), 16000, rate)
    path = tmp_path / "recording.wav"
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype)
    text, speech, tokens, picture = show(service, page.TRANSCRIBE, "", str(path))
    assert text == WORDS and speech is None and tokens.startswith("[Hu")
    assert picture.size[0] > 500


def test_text_and_recording_are_continued(served, lm):
    _, service = served
    text, speech, tokens, picture = show(service, "continue in text", WORDS, None)
    assert text.strip() == "two plus two is four" and speech is None and picture is None
    states = show(service, "continue in speech", "", str(QUESTION))
    (expected,) = lm.generate([("speech", str(QUESTION))], "speech", max_new_tokens=200)
    rate, samples = states[1]
    assert rate == 16000 and samples.dtype == np.int16
    assert len(samples) >= 0.9 * len(expected.content)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ((page.READ, "", None), "needs a text"),
        ((page.TRANSCRIBE, "", None), "needs a recording"),
        (("continue", "", None), "Give a text, a recording, or both"),
        (("dance", "x", None), "is not a task"),
        ((page.READ, "x", None, "nobody"), "nobody"),
        (("continue", "x", None, "default", "default", 200, 0, 1, -1), "seed"),
        (("continue", "word " * 600, None), "tokens"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(served, inputs, message):
    with pytest.raises(gradio.Error, match=message):
        show(served[1], *inputs)


def test_empty_and_damaged_recordings_are_one_sentence(served, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    (tmp_path / "bad.wav").write_bytes(b"rubbish")
    for name, message in (("short.wav", "no units"), ("bad.wav", "is not audio")):
        with pytest.raises(gradio.Error, match=message):
            show(served[1], "continue", "", str(tmp_path / name))


def test_leaving_the_page_frees_the_row(served, monkeypatch):
    _, service = served
    engine, step = service.worker._engine, service.worker._engine.step
    monkeypatch.setattr(engine, "step", lambda most: (time.sleep(0.05), step(1)))

    async def leave():
        states = page.answer_on_page(service, "continue in text", "the", None, "default",
                                     "default", 450, 0.0, 1.0, 3)  # fmt: skip
        await anext(states)
        assert service.worker.live == 1
        await states.aclose()

    asyncio.run(leave())
    wait_until(lambda: service.worker.live == 0)


def test_samples_are_clipped_and_not_scaled():
    assert to_int16(np.array([0.5, 1.0, 1.2, -1.0, -1.2])).tolist() == [
        16384, 32767, 32767, -32768, -32768,
    ]  # fmt: skip


def test_a_picture_has_a_strip_of_units(tmp_path):
    wave = load_audio(QUESTION)
    sizes = []
    for units in ((), ((0.0, 0.4, 5), (0.4, 1.0, 99))):
        picture = io.BytesIO()
        pictures.draw(picture, [pictures.Panel("a", wave, units)])
        assert picture.getvalue().startswith(b"\x89PNG")
        sizes.append(picture.getvalue())
    assert sizes[0] != sizes[1]


def test_files_of_the_page_are_deleted(served):
    """Files that are older than the age are deleted; no request lasts so long."""
    _, service = served
    blocks = page.make_page(service)
    assert blocks.delete_cache == (page.CLEAN_EVERY, page.CLEAN_AGE)
    assert page.CLEAN_AGE > 2 * service.settings.timeout
    (event,) = [fn for fn in blocks.fns.values() if fn.api_name == "answer"]
    assert event.concurrency_limit > 16


@pytest.fixture
def browsers():
    """A function that opens a headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if not shutil.which("chromium") or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    opened = []

    def open_browser():
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for option in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
            options.add_argument(f"--{option}")
        options.add_argument("--window-size=1200,1650")
        service = webdriver.ChromeService(driver)
        opened.append(webdriver.Chrome(options=options, service=service))
        return opened[-1]

    yield open_browser
    for browser in opened:
        browser.quit()


@pytest.mark.slow
def test_two_browsers_work_at_the_same_time(served, browsers):
    from selenium.webdriver.common.by import By

    address, _ = served
    first, second = browsers(), browsers()

    def find(browser, selector):
        wait_until(lambda: browser.find_elements(By.CSS_SELECTOR, selector), 60)
        return browser.find_element(By.CSS_SELECTOR, selector)

    def choose(browser, task):
        find(browser, f"#task input[value='{task}']").click()

    def size_of(browser, selector, attribute):
        script = f"let e = document.querySelector(arguments[0]); return e ? e.{attribute} : 0"
        return browser.execute_script(script, selector) or 0

    for browser in (first, second):
        browser.get(address)
        find(browser, "#run")
    find(first, "#recording input[type=file]").send_keys(str(QUESTION))
    wait_until(lambda: first.find_elements(By.CSS_SELECTOR, "#recording [aria-label*='lay']"), 60)
    choose(first, page.TRANSCRIBE)
    find(second, "#text textarea").send_keys("turn on the lights")
    choose(second, page.READ)
    time.sleep(0.5)
    for browser in (first, second):
        find(browser, "#run").click()
    wait_until(lambda: find(first, "#said textarea").get_attribute("value") == WORDS, 120)
    wait_until(lambda: size_of(second, "#speech audio", "duration") > 0.5
               or find(second, "#speech a[download]"), 120)  # fmt: skip
    for browser in (first, second):
        wait_until(lambda b=browser: size_of(b, "#picture img", "naturalWidth") > 500, 120)
    if SCREENSHOTS:
        for browser, name in ((first, "page-transcribe"), (second, "page-read")):
            browser.execute_script("window.scrollTo(0, 0)")
            browser.save_screenshot(f"{SCREENSHOTS}/{name}.png")
