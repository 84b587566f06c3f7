"""SGLang-Diffusion's HTTP layer with an engine that only waits and paints, for `overhead.py`.

Runs in SGLang's own environment, which must not be ours (it pins another torch), as
`PYTHON benchmarks/gateway/sglang_layer.py PORT`; reads `BENCH_FOLDER` and `BENCH_ENGINE_S`. Its HTTP
server speaks to its scheduler by pickles over ZeroMQ, one request socket per call, so a process that
answers those takes the scheduler's place. As a worker of SGLang does, it writes the file, names it and sends the bytes along.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

MODEL: Final = Path(__file__).parents[2] / "models/shapes"
# A CUDA build of torchvision dies on a CPU build of torch while it registers operators.
sys.modules["torchvision._meta_registrations"] = ModuleType("none")


async def answer(endpoint: str, output_batch: type[Any], picture: bytes, engine_s: float) -> None:
    """Take the scheduler's place: answer every call with one painted picture."""
    import zmq  # noqa: PLC0415 - of the other environment
    import zmq.asyncio  # noqa: PLC0415

    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    socket.bind(endpoint)
    tasks: set[asyncio.Task[None]] = set()
    if (parent := multiprocessing.parent_process()) is not None:
        # The server dies of the signal that stops it, and ends no process of its own then.
        asyncio.get_running_loop().add_reader(parent.sentinel, os._exit, 0)

    async def one(sender: bytes, payload: bytes) -> None:
        (request,) = pickle.loads(payload)  # noqa: S301 - from our own process
        await asyncio.sleep(engine_s)
        path = Path(request.output_file_path(1, 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)  # noqa: ASYNC240 - a worker of SGLang waits for it, too
        found = output_batch(output_file_paths=[str(path)], output_image_bytes=[picture])
        await socket.send_multipart([sender, b"", pickle.dumps(found)])

    while True:
        sender, _, payload = await socket.recv_multipart()
        task = asyncio.create_task(one(sender, payload))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def scheduler(endpoint: str, engine_s: float) -> None:
    """Run the stand-in; a process of its own, as SGLang's scheduler is."""
    from PIL import Image  # noqa: PLC0415
    from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import (  # noqa: PLC0415
        OutputBatch,
    )

    file = Path(os.environ["BENCH_FOLDER"]) / f"{os.getpid()}.png"
    Image.new("RGB", (64, 48), (97, 98, 99)).save(file)
    asyncio.run(answer(endpoint, OutputBatch, file.read_bytes(), engine_s))


def main() -> None:
    """Serve on the port of the command line."""
    import uvicorn  # noqa: PLC0415 - of the other environment
    from sglang.multimodal_gen.runtime.entrypoints.http_server import create_app  # noqa: PLC0415
    from sglang.multimodal_gen.runtime.server_args import (  # noqa: PLC0415
        ServerArgs,
        set_global_server_args,
    )

    args = ServerArgs.from_kwargs(
        model_path=str(MODEL), output_path=os.environ["BENCH_FOLDER"], log_level="error"
    )
    set_global_server_args(args)
    place = (args.scheduler_endpoints[0], float(os.environ["BENCH_ENGINE_S"]))
    multiprocessing.get_context("fork").Process(target=scheduler, args=place, daemon=True).start()
    uvicorn.run(create_app(args), port=int(sys.argv[1]), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
