// openai's JavaScript SDK: chat and completions, streamed and not, tools, errors.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import assert from "node:assert/strict";

// Packages lie beside the check's scratch files, not beside this one.
const require = createRequire(process.env.NJOULE_CHECK_WORK + "/");
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));

const server = spawn(process.env.NJOULE_BIN, ["serve", process.env.NJOULE_CHECK_MODEL, "--port", "0",
  "--served-model-name", "m", "--log-level", "warn"], { stdio: ["ignore", "ignore", "pipe"] });
const url = await new Promise((resolve, reject) => {
  createInterface({ input: server.stderr }).on("line", line => {
    const found = line.match(/^listening on (\S+)/);
    if (found) resolve(found[1]);
  });
  server.on("exit", code => reject(new Error(`njoule ended with ${code}`)));
});
try {
  const client = new OpenAI({ baseURL: url + "/v1", apiKey: "x" });
  const models = await client.models.list();
  assert.deepEqual(models.data.map(m => m.id), ["m"]);
  const ask = { model: "m", messages: [{ role: "user", content: "Hello" }], max_tokens: 16, seed: 7 };
  const whole = await client.chat.completions.create(ask);
  let text = "", usage;
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(usage, whole.usage);
  const completion = await client.completions.create({ model: "m", prompt: "One", max_tokens: 4, logprobs: 2, echo: true });
  assert.equal(completion.choices[0].logprobs.token_logprobs[0], null);
  const tools = [{ type: "function", function: { name: "look", parameters: { type: "object",
    properties: { x: { type: "boolean" } }, required: ["x"], additionalProperties: false } } }];
  const called = await client.chat.completions.create({ ...ask, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200 });
  assert.equal(typeof JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).x, "boolean");
  await assert.rejects(client.chat.completions.create({ ...ask, temperature: 3 }),
    error => error instanceof OpenAI.BadRequestError && error.code === "invalid_value");
  // A reader that leaves.
  const long = await client.chat.completions.create({ ...ask, max_tokens: 400, stream: true, ignore_eos: true });
  for await (const _ of long) break;
  console.log("ok: chat, completions, streams, tools, errors, a stream that was left");
} finally {
  server.removeAllListeners("exit");
  server.kill("SIGTERM");
  const code = await new Promise(resolve => server.on("exit", resolve));
  assert.equal(code, 0);
}
