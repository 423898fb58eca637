"""Ctrl-C and SIGTERM during a command: one sentence, never a traceback, and never lost."""

import contextlib
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator

SENTENCES = {signal.SIGINT: b"error: interrupted\n", signal.SIGTERM: b"error: terminated\n"}
REPEAT_SECONDS = 0.05  # after which a lost `KeyboardInterrupt` is raised again
STUCK_SECONDS = 5.0  # after which a process whose main thread runs C++ code is ended


def end_at_once() -> None:
    """Lets Ctrl-C end the process without a traceback, until `raising` is entered.

    For the time while modules are imported, when there is nothing to clean up.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within this context Ctrl-C and SIGTERM raise `KeyboardInterrupt` with the signal's number.

    * During imports the process ends at once: C++ extensions of JAX crash if an exception is raised
      while they are initialised.
    * Python prints and ignores exceptions in callbacks of the garbage collector (JAX has such a
      callback) and in destructors. The signal is repeated then.
    * A library may raise another error after it, as Orbax does. That error is replaced, and those
      of its threads are not printed.
    * Python calls no handler while the main thread runs C++ code, such as XLA's compiler. After
      `STUCK_SECONDS` the process ends without it.
    """
    received: list[int] = []

    def interrupt(signum: int, frame: types.FrameType | None) -> None:
        received.append(signum)
        logging.disable(logging.CRITICAL)  # asyncio lists the tasks that were pending
        sys.stderr = open(os.devnull, "w")  # and threads of libraries print their errors
        if _is_importing(frame):
            end(signum)
        raise KeyboardInterrupt(signum)

    def repeat(unraisable) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident
            # A signal also wakes a main thread that waits in the kernel.
            number = received[-1] if received else signal.SIGINT
            timer = threading.Timer(REPEAT_SECONDS, signal.pthread_kill, (main, number))
            timer.daemon = True
            timer.start()
        else:
            hook(unraisable)

    handlers = {number: signal.getsignal(number) for number in SENTENCES}
    for number, handler in handlers.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):  # not one ignored, by nohup
            signal.signal(number, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, repeat
    try:
        with _ending_if_stuck(interrupt, received):
            yield
    except (Exception, KeyboardInterrupt) as error:
        if received:
            raise KeyboardInterrupt(received[-1]) from error
        raise
    finally:
        if sys.unraisablehook is repeat:  # a library may have wrapped it
            sys.unraisablehook = hook
        for number, handler in handlers.items():
            if handler is not None:  # None: it was not set by Python
                signal.signal(number, handler)


@contextlib.contextmanager
def _ending_if_stuck(handler, received: list[int]) -> Iterator[None]:
    """Ends the process if the main thread does not call `handler` soon after a signal.

    Args:
      handler: of the signals. Nothing is done while another handler is set, as in a training.
      received: numbers of the signals that `handler` was called with.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A forked process would write its signals to the same pipe.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    left = threading.Event()

    def watch() -> None:
        while number := int.from_bytes(os.read(reader, 1)):
            if number in SENTENCES and signal.getsignal(number) is handler and not received:
                left.wait(STUCK_SECONDS)
                if not received and not left.is_set():
                    end(number)
        os.close(reader)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writer)  # ends the thread


def end(signum: int = signal.SIGINT) -> None:
    """Ends the process with one sentence, and the exit status that shells have for the signal.

    A normal exit would wait for threads of libraries, which may hang or crash.

    Args:
      signum: SIGINT or SIGTERM.
    """
    with contextlib.suppress(OSError):  # nobody reads the outputs any more
        sys.stdout.flush()
        os.write(2, SENTENCES[signum])
    os._exit(128 + signum)


def _is_importing(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
