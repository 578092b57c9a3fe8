"""What a type checker sees of a user's program; `make lint` checks it, nothing runs it."""

from concurrent.futures import Executor
from typing import Any, assert_type

import numpy as np

from theus import (
    ParallelContext,
    ProcessContext,
    Progress,
    ShmArray,
    State,
    TaskInfo,
    TheusEngine,
    native,
    open,  # noqa: A004 - the package's own name
    process,
    sessions,
    sweep,
)


@process(parallel=True)
def total(ctx: ParallelContext, scale: float = 1.0) -> float:
    return float(ctx.heavy["x"].sum()) * scale


@process
async def label(ctx: ProcessContext) -> str:
    return str(ctx.domain["label"])


def square(ctx: ParallelContext, item: int) -> int:
    return item * item


async def program(engine: TheusEngine) -> None:
    assert_type(engine.heavy.alloc("x", (3, 4), np.float32), ShmArray)
    assert_type(engine.heavy.put("y", np.arange(3)), ShmArray)
    assert_type(engine.heavy["y"], Any)
    assert_type(engine.compare_and_swap(0, heavy={"z": engine.heavy["y"]}), State)
    assert_type(await engine.execute(total, scale=2.0, timeout=3), float)
    assert_type(await engine.execute(label), str)
    assert_type(engine.submit(total).result(), float)
    assert_type(engine.submit(label).result(), str)
    for value in engine.map(square, range(3), progress=True):
        assert_type(value, int)
    async for value in engine.map(square, range(3)):
        assert_type(value, int)
    assert_type(await engine.execute(native("tasks.sum"), column="x"), Any)
    future = engine.submit(native("tasks.sum", on_progress=print), column="x")
    assert_type(future.progress, Progress | None)
    for value in engine.map(native("tasks.sum"), range(3)):
        assert_type(value, Any)
    assert_type(engine.native_worker("tasks", count=2), tuple[str, ...])
    assert_type(engine.tasks()["tasks.sum"], TaskInfo)
    assert_type(engine.executor(), Executor)
    assert_type(total(ParallelContext.__new__(ParallelContext)), float)
    assert_type(open(engine.heavy.path("y")), Any)
    assert_type(sweep(), list[str])
    assert_type([info.alive for info in sessions()], list[bool])

    # Each ignored line is an error that has to stay one.
    engine.heavy.alloc("x", "3")  # pyright: ignore[reportArgumentType]
    await engine.execute(3)  # pyright: ignore[reportArgumentType, reportCallIssue]
    await engine.execute(total, timeout="3")  # pyright: ignore[reportArgumentType, reportCallIssue]
    engine.state.version = 3  # pyright: ignore[reportAttributeAccessIssue]
    engine.heavy["x"] = np.arange(3)  # pyright: ignore[reportIndexIssue]
    process(3)  # pyright: ignore[reportArgumentType]


def untyped(ctx: Any) -> Any:
    return ctx


def untyped_program(engine: TheusEngine) -> None:
    assert_type(engine.submit(untyped).result(), Any)
