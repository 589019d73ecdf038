"""Searching errors for what they must not hold."""

from __future__ import annotations

import traceback


def everything_in(error: BaseException) -> str:
    """All that anybody could print of an error: causes, contexts, and the local variables of each frame of ours.

    Frames of this file hold the test's own secrets and are left out.
    """
    parts: list[str] = []
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        parts += [repr(one), str(one), *getattr(one, "__notes__", ())]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if "/tests/" not in frame.f_code.co_filename:
                parts += [f"{name}={value!r}" for name, value in frame.f_locals.items()]
        todo += [one.__cause__, one.__context__]
    return "\n".join(parts)
