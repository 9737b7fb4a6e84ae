# SPDX-License-Identifier: GPL-2.0-or-later
"""libFuzzer in this process, by way of atheris: the fast engine.

`atheris.Fuzz` never returns, so a session under it is a process of its own (`campaign.worker`).
Nothing is instrumented: libFuzzer reads the counters of `Feedback`, registered here as a compiler's
start-up code would register them. Findings are filed by the session and are not crashes for
libFuzzer; a crash is a death of the process by its signal. Our mutator replaces libFuzzer's.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from guestemu.abi.errors import EngineError
from guestemu.abi.files import write_atomically
from guestemu.campaign.dictionary import dictionary_text
from guestemu.campaign.engines.base import Leave
from guestemu.campaign.fastpath.fastpath import FastPath, open_fast_path
from guestemu.campaign.feedback import SIZE
from guestemu.campaign.mixed_mutator import MixedMutator
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.native import load_mutator
from guestemu.campaign.session import Session, SessionOver
from guestemu.campaign.shares import Shares
from guestemu.campaign.store import WORKDIR

_CORE: Final = "core_with_libfuzzer"
_SEED_MASK: Final = (1 << 31) - 1
_CRASHES: Final = ("segv", "bus", "abrt", "ill", "fpe")
"""Signals that end the process, and so tell the supervisor how it ended."""

_PC_BASE: Final = 0x1000
_PC_STEP: Final = 16

Callback = Callable[[bytes], None]


class AtherisEngine:
    """See the module's docstring."""

    name = "atheris"
    summary = "libFuzzer through atheris, guided by guest blocks and model states"
    remedy = (
        "the atheris package is not installed (pip install 'guestemu[fuzz]'; it has wheels for "
        "Linux on x86-64, Python up to 3.13)"
    )

    def is_available(self) -> bool:
        """Whether atheris can be imported."""
        return importlib.util.find_spec("atheris") is not None

    def run(self, session: Session, leave: Leave) -> None:
        """See `Engine.run`; always ends by `leave`."""
        execute = session.execute

        def test_one_input(data: bytes) -> None:
            try:
                execute(data)
            except SessionOver:
                leave(None)
            except BaseException as error:
                leave(error)

        def stop(error: BaseException) -> None:
            leave(None if isinstance(error, SessionOver) else error)

        session.skips_known = True
        has_scout = session.executor.testbed.scout is not None  # which runs what Python runs
        fast_path = None if has_scout else open_fast_path(session, stop)
        fuzz(_arguments(session), test_one_input, session, fast_path, weighs=True)


def _arguments(session: Session) -> list[str]:
    store = session.store
    arguments = [
        "guestemu-fuzz",
        f"-max_len={session.executor.max_size}",
        f"-seed={(session.plan.seed & _SEED_MASK) + 1}",
        "-len_control=0",
        "-entropic_scale_per_exec_time=1",
        "-use_value_profile=0",
        "-reduce_inputs=0",  # would remove inputs that other workers have; `guestemu merge` does
        *(f"-handle_{signal}=0" for signal in ("int", "term", *_CRASHES)),
        "-rss_limit_mb=0",
        "-print_pcs=0",
        "-verbosity=0",
    ]
    if store is not None:
        dictionary = store.infrastructure / "dictionary.txt"
        write_atomically(dictionary, dictionary_text(session.kinds).encode(), WORKDIR)
        arguments += [f"-dict={dictionary}"]
        arguments += [f"-artifact_prefix={store.infrastructure}/", str(store.corpus)]
    return arguments


def fuzz(
    arguments: list[str],
    test_one_input: Callback,
    session: Session,
    fast_path: FastPath | None = None,
    *,
    weighs: bool = False,
) -> None:
    """Runs libFuzzer with command line `arguments` on `test_one_input`, or on `fast_path` if there
    is one, over the counters and the mutator of `session`. With `weighs` the session says what
    covered something new, and as many inputs are new programs as pays. Does not return unless
    libFuzzer cannot start."""
    import atheris

    executor = session.executor
    ours = Mutator(session.plan.header, session.kinds, executor.decoder.extra)
    mutator = MixedMutator(ours, executor.max_size)
    native = load_mutator()
    if weighs:
        mutator.shares = Shares() if native is None else native.share()
        session.gained = mutator.shares.gain
    if native is not None:
        atheris.Setup(arguments, test_one_input, internal_libfuzzer=True)
    else:
        atheris.Setup(
            arguments,
            test_one_input,
            custom_mutator=mutator.mutate,
            custom_crossover=mutator.cross,
            internal_libfuzzer=True,
        )
        _load_globally("atheris.custom_mutator")
        _load_globally("atheris.custom_crossover")
    core = load_core()
    session.feedback.keep.append(register(core, session.feedback.address, SIZE))
    llvm_mutate = ctypes.PyDLL(core.__file__).LLVMFuzzerMutate
    llvm_mutate.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    llvm_mutate.restype = ctypes.c_size_t
    mutator.use(llvm_mutate)
    if native is not None:
        native.connect(ctypes.cast(llvm_mutate, ctypes.c_void_p).value or 0, mutator)
        if fast_path is not None:
            drive(core, arguments, fast_path.library.one)
    atheris.Fuzz()


def drive(core: ModuleType, arguments: list[str], target: ctypes.c_void_p) -> None:
    """Runs the libFuzzer inside `core` on a target in machine code; returns only if libFuzzer
    cannot start."""
    words = [argument.encode() for argument in arguments]
    array = (ctypes.c_char_p * (len(words) + 1))(*words)
    argv = ctypes.cast(array, ctypes.POINTER(ctypes.c_char_p))
    count = ctypes.c_int(len(words))
    driver = ctypes.PyDLL(core.__file__).LLVMFuzzerRunDriver
    driver(ctypes.byref(count), ctypes.byref(argv), target)


def _load_globally(module: str) -> None:
    """Imports a native module so that libraries loaded later see its symbols.

    libFuzzer finds a custom mutator as a weak symbol, bound when its library is loaded; atheris
    takes care of that order itself, but `load_core` loads the library before it.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        importlib.import_module(module)
    finally:
        sys.setdlopenflags(flags)


def load_core() -> ModuleType:
    """The module with libFuzzer in it. Raises `EngineError` without one."""
    for name, module in list(sys.modules.items()):
        if name.rpartition(".")[2] == _CORE:
            return module
    import atheris

    path = next(Path(atheris.__file__).parent.glob(f"{_CORE}*.so"), None)
    spec = path and importlib.util.spec_from_file_location(f"atheris.{_CORE}", path)
    if not spec:
        raise EngineError(f"atheris has no {_CORE}; install atheris 3")
    return importlib.util.module_from_spec(spec)


def register(core: ModuleType, address: int, size: int) -> object:
    """Gives `size` counters at host `address` to the libFuzzer inside `core`, each with a made-up
    PC. The caller keeps the result as long as libFuzzer runs."""
    library = ctypes.CDLL(core.__file__)
    start = ctypes.c_void_p(address)
    end = ctypes.c_void_p(address + size)
    library.__sanitizer_cov_8bit_counters_init(start, end)
    table = (ctypes.c_uint64 * (2 * size))()
    for index in range(size):
        table[2 * index] = _PC_BASE + index * _PC_STEP
    first = ctypes.addressof(table)
    library.__sanitizer_cov_pcs_init(
        ctypes.c_void_p(first), ctypes.c_void_p(first + ctypes.sizeof(table))
    )
    return table
