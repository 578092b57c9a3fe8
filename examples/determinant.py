"""The guide's example: a 5000 x 5000 matrix, its determinant computed by a worker in place."""

import asyncio

import numpy as np

from theus import TheusEngine, process


@process(parallel=True)
def heavy_compute(ctx):
    data = ctx.heavy["matrix"]
    with np.errstate(over="ignore"):  # the product of 5000 pivots is past float32's 3e38
        det = np.linalg.det(data)
    return {"det": float(det), "slogdet": np.linalg.slogdet(data)}


async def main():
    async with TheusEngine() as engine:
        arr = engine.heavy.alloc("matrix", shape=(5000, 5000), dtype=np.float32)
        arr[:] = np.random.default_rng(0).random((5000, 5000))
        engine.compare_and_swap(engine.state.version, heavy={"matrix": arr})
        result = await engine.execute(heavy_compute)
    sign, logabsdet = result["slogdet"]
    print(f"Determinant: {result['det']} (float32 overflows here)")
    print(f"slogdet: {sign:+.0f} * exp({logabsdet:.2f})")


if __name__ == "__main__":
    asyncio.run(main())
