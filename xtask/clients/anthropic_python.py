"""anthropic's Python SDK: messages streamed and not, tools, token counts, errors."""

import anthropic
from anthropic import Anthropic

from live import NAME, Server, passed

with Server() as server:
    client = Anthropic(base_url=server.url, api_key="x")
    ask = dict(model=NAME, max_tokens=16, system="Be brief.", messages=[{"role": "user", "content": "Hello"}], extra_body={"temperature": 0})
    whole = client.messages.create(**ask)
    assert whole.role == "assistant" and whole.stop_reason in ("end_turn", "max_tokens") and whole.usage.output_tokens <= 16
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "".join(block.text for block in whole.content if block.type == "text"), (text, whole.content)
    assert final.usage.output_tokens == whole.usage.output_tokens and final.stop_reason == whole.stop_reason
    count = client.messages.count_tokens(model=NAME, system=ask["system"], messages=ask["messages"])
    assert count.input_tokens == whole.usage.input_tokens
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"],
                                             "additionalProperties": False}}
    called = client.messages.create(**{**ask, "max_tokens": 200}, tools=[tool], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    used = [block for block in called.content if block.type == "tool_use"]
    assert called.stop_reason == "tool_use" and isinstance(used[0].input["x"], bool), called
    for change, kind in [({"extra_body": {"temperature": 3}}, anthropic.BadRequestError), ({"model": "other"}, anthropic.NotFoundError)]:
        try:
            client.messages.create(**{**ask, **change})
        except kind:
            continue
        raise AssertionError(f"{change} was taken")
passed("messages, streams, tools, token counts, errors")
