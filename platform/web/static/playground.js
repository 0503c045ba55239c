// One prompt to several models at once, each answer shown as it streams, with what it took.

const form = document.getElementById("play");
const stop = document.getElementById("stop");
const value = (id) => document.getElementById(id).value;
let running = null;

function body(model) {
  const system = value("system").trim();
  const messages = [{ role: "user", content: value("prompt") }];
  if (system) messages.unshift({ role: "system", content: system });
  return JSON.stringify({
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number(value("temperature")),
    max_tokens: Number(value("max-tokens")),
    seed: Number(value("seed")),
  });
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value: piece } = await reader.read();
    if (done) return;
    const blocks = (rest + piece).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.startsWith("data: ") ? block.slice(6) : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function figures(answer, started, first, usage) {
  const seconds = (performance.now() - started) / 1000;
  const parts = [];
  if (first !== null) parts.push(`first token ${Math.round(first - started)} ms`);
  if (usage) {
    parts.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens in ${seconds.toFixed(2)} s`);
  }
  const adapter = answer.headers.get("x-loraplex-adapter-state");
  if (adapter) parts.push(`adapter ${adapter}`);
  return parts.join(", ");
}

async function ask(column, signal) {
  const model = column.querySelector("select").value;
  const text = column.querySelector(".text");
  const told = column.querySelector(".figures");
  text.textContent = told.textContent = "";
  if (!model) return;
  column.classList.add("busy");
  const started = performance.now();
  try {
    const headers = { "content-type": "application/json", "x-csrf-token": form.dataset.csrf };
    const answer = await fetch(form.dataset.chat, { method: "POST", body: body(model), headers, signal });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    let first = null;
    let usage = null;
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices?.[0]?.delta;
      const more = (delta?.reasoning_content ?? "") + (delta?.content ?? "");
      if (more && first === null) first = performance.now();
      text.append(more);
      usage = event.usage ?? usage;
    }
    told.textContent = figures(answer, started, first, usage);
  } catch (error) {
    told.textContent = error.name === "AbortError" ? "Stopped." : error.message;
  } finally {
    column.classList.remove("busy");
  }
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  const mine = (running = new AbortController());
  stop.disabled = false;
  await Promise.all([...document.querySelectorAll(".answer")].map((column) => ask(column, mine.signal)));
  if (running === mine) stop.disabled = true;
});

stop?.addEventListener("click", () => running?.abort());

document.getElementById("prompt")?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
