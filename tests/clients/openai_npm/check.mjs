// OpenAI's npm package: chat, streams, tools, errors, embeddings, responses. Prints the lines that report.py tells of.
import assert from "node:assert/strict";
import OpenAI from "openai";

const { BASE_MODEL: base, ADAPTER_MODEL: adapter } = process.env;
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "I was charged twice for the tent I bought on Monday." }];
const greedy = { messages, max_tokens: 8, temperature: 0 };
const refusals = ["is not supported by this server", "unsupported_value", "unsupported_parameter", "Unknown request URL"];
const desks = ["billing", "delivery", "returns", "account", "technical", "sales"];
const parameters = {
  type: "object",
  properties: { desk: { type: "string", enum: desks } },
  required: ["desk"],
  additionalProperties: false,
};

let defects = 0;

async function feature(name, model, needs, check) {
  let outcome = "ok";
  let detail = "";
  try {
    await check();
  } catch (error) {
    detail = `${error.name}: ${error.message} ${error.code ?? ""}`.trim();
    outcome = refusals.some((mark) => detail.includes(mark)) ? "refused" : "defect";
    defects += outcome === "defect";
  }
  console.log(JSON.stringify({ feature: name, model, needs, outcome, detail: detail.slice(0, 2000) }));
}

async function textOf(model) {
  return (await client.chat.completions.create({ model, ...greedy })).choices[0].message.content;
}

await feature("models: list, retrieve", "", "", async () => {
  const listed = [];
  for await (const model of client.models.list()) listed.push(model.id);
  assert(listed.includes(base));
  assert.equal((await client.models.retrieve(base)).id, base);
});

for (const model of [base, adapter]) {
  await feature("chat", model, "", async () => assert((await textOf(model)).length > 0));
  await feature("chat, stream with usage", model, "", async () => {
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
  await feature("chat, stream helper", model, "", async () => {
    assert.equal(await client.chat.completions.stream({ model, ...greedy }).finalContent(), await textOf(model));
  });
  await feature("completions", model, "", async () => {
    const options = { model, prompt: "Once upon a time", max_tokens: 8, temperature: 0 };
    let text = "";
    for await (const chunk of await client.completions.create({ ...options, stream: true })) text += chunk.choices[0].text;
    assert.equal(text, (await client.completions.create(options)).choices[0].text);
  });
  await feature("tools, run by the client", model, "tools", async () => {
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
  await feature("parse a JSON schema", model, "response_format", async () => {
    const response_format = { type: "json_schema", json_schema: { name: "routing", strict: true, schema: parameters } };
    const { choices } = await client.chat.completions.parse({ model, messages, max_tokens: 64, response_format });
    assert(desks.includes(JSON.parse(choices[0].message.content).desk));
  });
  await feature("embeddings", model, "embeddings", async () => {
    const { data } = await client.embeddings.create({ model, input: ["one", "two"] });
    assert.equal(data.length, 2);
    assert(data[1].embedding.every(Number.isFinite));
  });
  await feature("responses, whole and streamed", model, "responses", async () => {
    const options = { model, input: messages[0].content, max_output_tokens: 16, temperature: 0 };
    const stream = client.responses.stream(options);
    const final = await stream.finalResponse();
    assert.equal(final.output_text, (await client.responses.create(options)).output_text);
  });
}

await feature("a stream that is left early", base, "", async () => {
  const stream = await client.chat.completions.create({ model: base, messages, max_tokens: 200, stream: true });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert((await textOf(base)).length > 0);
});

await feature("errors become the client's classes", "", "", async () => {
  await assert.rejects(client.chat.completions.create({ model: "absent", messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model: base, messages, temperature: 9 }), OpenAI.BadRequestError);
  const stranger = new OpenAI({ apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

process.exitCode = defects ? 1 : 0;
