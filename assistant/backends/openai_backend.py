"""A model behind any OpenAI-compatible address. Needs neither torch nor transformers."""

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from contextlib import asynccontextmanager
from typing import Any, cast

import openai

from assistant.backends import Counts, Sampling, without_login
from assistant.backends.pump import HEARTBEAT_S, pump
from assistant.conversations import Message
from assistant.formats import to_parts
from assistant.images import data_address
from assistant.settings import one_line

TIMEOUT = openai.Timeout(120, connect=10)
AT_ONCE = 4  # requests in flight while evaluating


class OpenAIBackend:
    """`address` is http…/v1, or http…/v1#name for one of the server's models (else its first)."""

    def __init__(self, address: str) -> None:
        self.base_url, _, self._model = address.partition("#")
        self._shown = without_login(self.base_url)
        self.label = f"openai: {without_login(address)}"
        self.context = None  # the API has no question for it

    def count_prompt(self, messages: list[Message]) -> None:
        """The server counts, but only after it has answered: see Counts."""

    def count_text(self, text: str) -> None:
        """As count_prompt."""

    def stream(
        self, messages: list[Message], sampling: Sampling, stop: threading.Event | None = None
    ) -> Generator[str, None, None]:
        def work(emit: Callable[[str], None], is_stopped: Callable[[], bool]) -> None:
            asyncio.run(self._until_stopped(messages, sampling, emit, is_stopped))

        return pump(work, stop)

    def answer_all(
        self,
        conversations: list[list[Message]],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        return asyncio.run(self._answer_all(conversations, sampling, progress or (lambda done: None)))

    async def _until_stopped(
        self,
        messages: list[Message],
        sampling: Sampling,
        emit: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        """Cancelling the task closes the HTTP response, whatever it is waiting for; the server sees that."""
        task = asyncio.create_task(self._speak(messages, sampling, emit))
        while not task.done() and not is_stopped():
            await asyncio.wait({task}, timeout=HEARTBEAT_S)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        elif error := task.exception():
            raise error

    async def _speak(self, messages: list[Message], sampling: Sampling, emit: Callable[[str], None]) -> None:
        async with self._client() as client, await self._request(client, messages, sampling, True) as chunks:
            ending, usage = "stop", None
            try:
                async for chunk in chunks:
                    usage = chunk.usage or usage
                    if chunk.choices:
                        ending = chunk.choices[0].finish_reason or ending
                        emit(chunk.choices[0].delta.content or "")
            except openai.APIConnectionError as error:
                raise RuntimeError(
                    f"{self._shown} broke off the answer ({one_line(error)}); ask again"
                ) from None
            if usage:
                is_cut = ending == "length"
                emit(Counts(usage.prompt_tokens, usage.completion_tokens, "length" if is_cut else "stop"))

    async def _answer_all(
        self, conversations: list[list[Message]], sampling: Sampling, progress: Callable[[int], None]
    ) -> list[str]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def answer(messages: list[Message]) -> str:
            async with gate:
                reply = await self._request(client, messages, sampling, False)
            progress(1)
            return (reply.choices[0].message.content or "").strip()

        async with self._client() as client:
            return await asyncio.gather(*map(answer, conversations))

    async def _request(
        self, client: openai.AsyncOpenAI, messages: list[Message], sampling: Sampling, stream: bool
    ) -> Any:
        model = self._model or await self._first_model(client)
        return await client.chat.completions.create(
            model=model,
            messages=cast(Any, [to_parts(message, data_address) for message in messages]),
            stream=cast(Any, stream),
            stream_options={"include_usage": True} if stream else openai.omit,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature else openai.omit,
            seed=openai.omit if sampling.seed is None else sampling.seed,
        )

    async def _first_model(self, client: openai.AsyncOpenAI) -> str:
        models = (await client.models.list()).data
        if not models:
            raise RuntimeError(f"{self._shown} serves no model; start one there")
        self._model = models[0].id
        return self._model

    @asynccontextmanager
    async def _client(self) -> Any:
        key = os.environ.get("OPENAI_API_KEY") or "none"
        try:
            async with openai.AsyncOpenAI(
                base_url=self.base_url, api_key=key, timeout=TIMEOUT, max_retries=1
            ) as client:
                yield client
        except openai.OpenAIError as error:
            raise RuntimeError(self._sentence(error)) from None

    def _sentence(self, error: Exception) -> str:
        match error:
            case openai.APITimeoutError():
                return f"{self._shown} did not answer in time; try again, or look at the server"
            case openai.APIConnectionError():
                return f"{self._shown} cannot be reached; start the server, or check the address"
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return f"{self._shown} refused the key; set OPENAI_API_KEY to a valid one"
            case openai.NotFoundError():
                return f"{self._shown} has no model {self._model!r}; give one it serves: {self._shown}#NAME"
            case openai.APIStatusError():
                return f"{self._shown} answered with status {error.status_code}: {one_line(error)}"
        return f"{self._shown} could not answer: {one_line(error)}"
