"""Ctrl-C during a command: one sentence, never a traceback, and never lost."""

import contextlib
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator

STATUS = 130  # exit status after Ctrl-C, as shells have it
REPEAT_SECONDS = 0.05  # after which a lost `KeyboardInterrupt` is raised again


def end_at_once() -> None:
    """Lets Ctrl-C end the process without a traceback, until `raising` is entered.

    For the time while modules are imported, when there is nothing to clean up.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within this context Ctrl-C raises `KeyboardInterrupt`, whatever libraries make of it.

    * During imports the process ends at once: C++ extensions of JAX crash if an exception is raised
      while they are initialised.
    * Python prints and ignores exceptions in callbacks of the garbage collector (JAX has such a
      callback) and in destructors. The interrupt is repeated then.
    * A library may raise another error after it, as Orbax does. That error is replaced, and those
      of its threads are not printed.
    """
    interrupted = False

    def interrupt(signum: int, frame: types.FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        logging.disable(logging.CRITICAL)  # asyncio lists the tasks that were pending
        sys.stderr = open(os.devnull, "w")  # and threads of libraries print their errors
        if _is_importing(frame):
            end()
        raise KeyboardInterrupt

    def repeat(unraisable) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident
            # A signal also wakes a main thread that waits in the kernel.
            timer = threading.Timer(REPEAT_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
            timer.daemon = True
            timer.start()
        else:
            hook(unraisable)

    handler = signal.getsignal(signal.SIGINT)
    if handler in (signal.SIG_DFL, signal.default_int_handler):  # not where it is ignored, by nohup
        signal.signal(signal.SIGINT, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, repeat
    try:
        yield
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        if sys.unraisablehook is repeat:  # a library may have wrapped it
            sys.unraisablehook = hook
        if handler is not None:  # None: it was not set by Python
            signal.signal(signal.SIGINT, handler)


def end() -> None:
    """Ends the process with one sentence.

    A normal exit would wait for threads of libraries, which may hang or crash.
    """
    with contextlib.suppress(OSError):  # nobody reads the outputs any more
        sys.stdout.flush()
        os.write(2, b"error: interrupted\n")
    os._exit(STATUS)


def _is_importing(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
