"""Chat templates from the supervisor's side: asks the renderer process, kills it when it takes too long, starts another when it is needed."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from corral_server.nursery import Child, Nursery

TIME_LIMIT = 5.0
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For a file that brings no template of its own."""


def template_variables(messages: list[dict[str, Any]], tools: list[Any] | None, extra: Mapping[str, Any], *, bos: str, eos: str) -> dict[str, Any]:
    """What a chat template is rendered with."""
    return {
        "messages": messages, "add_generation_prompt": True, "bos_token": bos, "eos_token": eos, "enable_thinking": True,
        **({"tools": tools} if tools else {}), **extra,
    }  # fmt: skip


class TemplateError(Exception):
    """The template could not be rendered with these messages; the text says why."""


class Rendering:
    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._child: Child | None = None
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._next = 0
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        async with self._starting:
            if self._child is None or self._child.exited.done():
                self._child = await self._nursery.fork("renderer")
                self._reader = asyncio.create_task(self._read(self._child))

    async def render(self, template: str, variables: dict[str, Any]) -> str:
        """The prompt that a template makes; TemplateError says why it cannot."""
        return await self._ask("the chat template", {"template": template, "variables": variables})

    async def rules(self, schemas: list[Any], names: Sequence[str] = (), *, loose: bool = False) -> str:
        """The grammar rules of JSON schemas; the first begins at `s0-root`, the next at `s1-root`, and so on. An error has the schema's name.

        `loose`: patterns that no grammar can hold are left out.
        """
        return await self._ask("the schema", {"schemas": schemas, "names": list(names), "loose": loose})

    async def _ask(self, what: str, order: dict[str, Any]) -> str:
        await self.start()
        child = self._child
        if child is None:
            raise TemplateError("the renderer is gone")
        self._next += 1
        number = self._next
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        child.channel.send({"i": number, **order})
        try:
            return await asyncio.wait_for(answer, TIME_LIMIT)
        except TimeoutError:
            child.kill()
            raise TemplateError(f"{what} took longer than {TIME_LIMIT:.0f} s") from None
        finally:
            self._waiting.pop(number, None)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and not self._child.exited.done() else None

    async def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            await child.exited
        if self._reader is not None:
            await self._reader

    async def _read(self, child: Child) -> None:
        async for message in child.channel.messages():
            answer = self._waiting.pop(message["i"], None)
            if answer is None or answer.done():
                continue
            if "error" in message:
                answer.set_exception(TemplateError(message["error"]))
            else:
                answer.set_result(message["text"])
        child.channel.close()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(TemplateError("the chat template ended the process that rendered it"))
