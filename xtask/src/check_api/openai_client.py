"""openai's Python client against a server: chat, streams, tools, structured output, errors. Takes the server's URL."""

import json
import sys

import openai

url = sys.argv[1]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Hello"}]


def chat(**more):
    return client.chat.completions.create(model=model, messages=messages, **more)


# A whole answer, and the same as a stream.
whole = chat(max_tokens=24, temperature=0, n=2)
assert [choice.index for choice in whole.choices] == [0, 1]
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
texts, finished, usage = ["", ""], [None, None], None
for chunk in chat(max_tokens=24, temperature=0, n=2, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        texts[choice.index] += choice.delta.content or ""
        finished[choice.index] = choice.finish_reason or finished[choice.index]
assert texts == [choice.message.content for choice in whole.choices], texts
assert finished == [choice.finish_reason for choice in whole.choices], finished
# How much of the prompt was in the cache may differ.
assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
assert all(chunk.usage is None for chunk in chat(max_tokens=2, stream=True))

# Text, and log-probabilities of its tokens.
text = client.completions.create(model=model, prompt="Hello", max_tokens=4, logprobs=2, echo=True, temperature=0)
assert text.choices[0].text.startswith("Hello") and text.choices[0].logprobs.token_logprobs[0] is None
top = chat(max_tokens=3, logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert all(len(token.top_logprobs) == 2 for token in top)

# Tools: demanded, by name, several at once, one at a time, streamed, and never.
parameters = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("weather", "time")]
for choice, names in [
    ("required", {"weather", "time"}),
    ({"type": "function", "function": {"name": "time"}}, {"time"}),
]:
    for parallel in (True, False):
        for seed in range(4):
            more = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel, "seed": seed, "max_tokens": 400}
            answer = chat(**more).choices[0]
            calls = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls]
            assert answer.finish_reason in ("tool_calls", "length"), answer
            assert calls and (parallel or len(calls) == 1), calls
            for name, arguments in calls:
                assert name in names and json.loads(arguments)["city"] in ("Paris", "Rome"), calls
            streamed = {}
            for chunk in chat(stream=True, **more):
                for call in chunk.choices[0].delta.tool_calls or []:
                    name, arguments = streamed.get(call.index, ("", ""))
                    function = call.function
                    streamed[call.index] = (name + (function.name or ""), arguments + (function.arguments or ""))
            assert [streamed[i] for i in sorted(streamed)] == calls, (streamed, calls)
assert chat(tools=tools, tool_choice="none", max_tokens=8).choices[0].message.tool_calls is None

# Structured output, by OpenAI's name and by vLLM's.
schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
named = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
for seed in range(4):
    assert json.loads(chat(response_format=named, seed=seed, max_tokens=300).choices[0].message.content)["n"] in (1, 2)
    chosen = chat(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, seed=seed, max_tokens=9)
    assert chosen.choices[0].message.content in ("yes", "no")
free = chat(response_format={"type": "json_object"}, seed=1, max_tokens=400).choices[0]
assert free.message.content.startswith("{")
if free.finish_reason == "stop":
    json.loads(free.message.content)

# Errors are those that the client knows.
for wrong, error in [
    (lambda: chat(temperature=9), openai.BadRequestError),
    (lambda: chat(max_tokens=10**6), openai.BadRequestError),
    (lambda: client.chat.completions.create(model="other", messages=messages), openai.NotFoundError),
]:
    try:
        wrong()
    except error as refused:
        assert refused.body["type"] and refused.body["code"], refused
    else:
        raise AssertionError(f"{error} was expected")
print("openai", openai.__version__, "and", model, "understand each other")
