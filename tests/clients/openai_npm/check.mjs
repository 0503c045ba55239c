// OpenAI's npm package: chat, streams, tools, errors, embeddings, files, responses. Prints the lines that report.py tells of.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const { BASE_MODEL: base, ADAPTER_MODEL: adapter } = process.env;
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "I was charged twice for the tent I bought on Monday." }];
const greedy = { messages, max_tokens: 8, temperature: 0 };
const desks = ["billing", "delivery", "returns", "account", "technical", "sales"];
const parameters = {
  type: "object",
  properties: { desk: { type: "string", enum: desks } },
  required: ["desk"],
  additionalProperties: false,
};

let defects = 0;

async function feature(name, model, check) {
  let outcome = "ok";
  let detail = "";
  try {
    await check();
  } catch (error) {
    detail = `${error.name}: ${error.message} ${error.code ?? ""}`.trim();
    outcome = "defect";
    defects += 1;
  }
  console.log(JSON.stringify({ feature: name, model, outcome, detail: detail.slice(0, 2000) }));
}

async function textOf(model) {
  return (await client.chat.completions.create({ model, ...greedy })).choices[0].message.content;
}

await feature("models: list, retrieve", "", async () => {
  const listed = [];
  for await (const model of client.models.list()) listed.push(model.id);
  assert(listed.includes(base));
  assert.equal((await client.models.retrieve(base)).id, base);
});

for (const model of [base, adapter]) {
  await feature("chat", model, async () => {
    const text = await textOf(model);
    assert(model === adapter ? text.trim() === "billing" : text.length > 0, text);
  });
  await feature("chat, stream with usage", model, async () => {
    const stream = await client.chat.completions.create({
      model, ...greedy, stream: true, stream_options: { include_usage: true },
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, await textOf(model));
    assert(usage.completion_tokens > 0);
  });
  await feature("chat, stream helper", model, async () => {
    assert.equal(await client.chat.completions.stream({ model, ...greedy }).finalContent(), await textOf(model));
  });
  await feature("completions", model, async () => {
    const options = { model, prompt: "Once upon a time", max_tokens: 8, temperature: 0 };
    let text = "";
    for await (const chunk of await client.completions.create({ ...options, stream: true })) text += chunk.choices[0].text;
    assert.equal(text, (await client.completions.create(options)).choices[0].text);
  });
  await feature("tools, run by the client", model, async () => {
    let asked = null;
    const route = {
      type: "function",
      function: { name: "route", parameters, parse: JSON.parse, function: (call) => ((asked = call), "done") },
    };
    const tool_choice = { type: "function", function: { name: "route" } };
    const runner = client.chat.completions.runTools(
      { model, messages, max_tokens: 64, temperature: 0, tools: [route], tool_choice }, { maxChatCompletions: 1 },
    );
    await runner.done();
    assert(desks.includes(asked.desk));
  });
  await feature("tools, streamed", model, async () => {
    const tools = [{ type: "function", function: { name: "route", parameters } }];
    const stream = client.chat.completions.stream({ model, ...greedy, max_tokens: 64, tools, tool_choice: "required",
      parallel_tool_calls: false });
    const call = await stream.finalFunctionToolCall();
    assert.equal(call.name, "route");
    assert(desks.includes(JSON.parse(call.arguments).desk));
  });
  await feature("parse a JSON schema, whole and streamed", model, async () => {
    const response_format = { type: "json_schema", json_schema: { name: "routing", strict: true, schema: parameters } };
    const options = { model, messages, max_tokens: 64, temperature: 0, response_format };
    const { choices } = await client.chat.completions.parse(options);
    assert(desks.includes(JSON.parse(choices[0].message.content).desk));
    assert.equal(await client.chat.completions.stream(options).finalContent(), choices[0].message.content);
  });
  await feature("embeddings", model, async () => {
    const input = ["one", "two"];
    const { data } = await client.embeddings.create({ model, input }); // asks for base64
    const plain = (await client.embeddings.create({ model, input, encoding_format: "float" })).data;
    assert.equal(data.length, 2);
    assert(data[1].embedding.every((value, index) => Math.abs(value - plain[1].embedding[index]) < 1e-4));
  });
  await feature("responses, whole and streamed", model, async () => {
    const options = { model, input: messages[0].content, max_output_tokens: 16, temperature: 0 };
    const final = await client.responses.stream(options).finalResponse();
    const whole = await client.responses.create(options);
    assert.equal(final.output_text, whole.output_text);
    assert(whole.output_text.length > 0);
  });
  await feature("responses, stored and continued", model, async () => {
    const options = { model, input: messages[0].content, max_output_tokens: 16, temperature: 0 };
    const first = await client.responses.create(options);
    const second = await client.responses.create({ ...options, input: "And now?", previous_response_id: first.id });
    const found = await client.responses.retrieve(second.id);
    assert.deepEqual([found.previous_response_id, found.output_text], [first.id, second.output_text]);
    await client.responses.delete(second.id);
    await assert.rejects(client.responses.retrieve(second.id), OpenAI.NotFoundError);
  });
}

await feature("a stream that is left early", base, async () => {
  const stream = await client.chat.completions.create({ model: base, messages, max_tokens: 200, stream: true });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert((await textOf(base)).length > 0);
});

await feature("files", "", async () => {
  const body = { model: base, ...greedy };
  const line = JSON.stringify({ custom_id: "1", method: "POST", url: "/v1/chat/completions", body });
  const file = await client.files.create({ file: await toFile(Buffer.from(line), "lines.jsonl"), purpose: "batch" });
  assert.equal(await (await client.files.content(file.id)).text(), line);
  assert.equal((await client.files.delete(file.id)).deleted, true);
  await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
});

await feature("errors become the client's classes", "", async () => {
  await assert.rejects(client.chat.completions.create({ model: "absent", messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model: base, messages, temperature: 9 }), OpenAI.BadRequestError);
  const stranger = new OpenAI({ apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

process.exitCode = defects ? 1 : 0;
