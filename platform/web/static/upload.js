// An adapter's files from a browser to the server: hashed here, sent in pieces, resumed where they broke off, and then
// what the server's checks say about them. Sends what the API takes, to the routes that a session opens.

const REQUIRED = ["adapter_config.json", "adapter_model.safetensors"];
const OPTIONAL = ["chat_template.jinja", "tokenizer_config.json", "tokenizer.json"];
const PIECE = 8 << 20;
const TRIES = 5;

const form = document.getElementById("upload");
const input = document.getElementById("files");
const drop = document.getElementById("drop");
const list = document.getElementById("transfers");
const state = document.getElementById("state");
const checks = document.getElementById("checks");
const send = form.querySelector("button[type=submit]");
const most = JSON.parse(form.dataset.most);
let chosen = new Map(); // name -> {file, bar}

const say = (text) => (state.textContent = text);

function choose(files) {
  chosen = new Map();
  list.replaceChildren();
  checks.replaceChildren();
  for (const file of files) {
    if (![...REQUIRED, ...OPTIONAL].includes(file.name)) continue;
    const row = document.createElement("li");
    const bar = document.createElement("progress");
    bar.max = file.size;
    bar.value = 0;
    bar.setAttribute("aria-label", file.name);
    row.append(Object.assign(document.createElement("span"), { textContent: file.name }), bar);
    list.append(row);
    chosen.set(file.name, { file, bar });
  }
  const missing = REQUIRED.filter((name) => !chosen.has(name));
  const large = [...chosen.values()].filter(({ file }) => file.size > most[file.name]);
  send.disabled = missing.length > 0 || large.length > 0;
  if (missing.length) say(`Missing: ${missing.join(" and ")}.`);
  else if (large.length) say(`${large[0].file.name} is larger than the ${most[large[0].file.name]} bytes accepted here.`);
  else say("Ready to upload.");
}

async function sha256(file) {
  const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function call(path, options = {}) {
  const headers = { "x-csrf-token": form.dataset.csrf, ...options.headers };
  const answer = await fetch(form.dataset.uploads + path, { ...options, headers });
  const isJson = answer.headers.get("content-type")?.includes("json");
  const body = isJson && answer.status !== 204 ? await answer.json() : null;
  if (answer.ok) return { answer, body };
  throw Object.assign(new Error(body?.error?.message ?? `The server answered ${answer.status}.`), {
    status: answer.status,
    details: body?.error?.details,
    offset: answer.headers.get("upload-offset"),
  });
}

const same = (upload, files) =>
  upload.adapter === form.dataset.adapter &&
  upload.files.length === files.length &&
  files.every((file) => upload.files.some((other) => other.name === file.name && other.sha256 === file.sha256));

// One that was begun with these very files goes on; else a new one.
async function open(files) {
  const { body: begun } = await call("");
  const known = begun.data.find((upload) => same(upload, files));
  if (known) return known;
  const body = JSON.stringify({ adapter: form.dataset.adapter, files });
  return (await call("", { method: "POST", body, headers: { "content-type": "application/json" } })).body;
}

async function sendFile(upload, name, offset) {
  const { file, bar } = chosen.get(name);
  const path = `/${upload.id}/files/${name}`;
  for (let failures = 0; offset < file.size; ) {
    bar.value = offset;
    const headers = { "content-type": "application/offset+octet-stream", "upload-offset": String(offset) };
    try {
      const piece = file.slice(offset, offset + PIECE);
      const { answer } = await call(path, { method: "PATCH", body: piece, headers });
      offset = Number(answer.headers.get("upload-offset"));
      failures = 0;
    } catch (error) {
      failures += 1;
      if (error.offset !== undefined && error.offset !== null) offset = Number(error.offset);
      else if (error.status !== undefined && error.status < 500) throw error;
      else if (failures > TRIES) throw error;
      else await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** failures));
    }
  }
  bar.value = file.size;
}

async function upload() {
  say("Hashing the files…");
  const files = [];
  for (const [name, { file }] of chosen) files.push({ name, size_bytes: file.size, sha256: await sha256(file) });
  const opened = await open(files);
  let version = opened.version;
  if (opened.state !== "published") {
    say("Sending…");
    for (const file of opened.files) await sendFile(opened, file.name, file.offset);
    say("Checking the files, and running the adapter beside the base…");
    version = (await call(`/${opened.id}/complete`, { method: "POST" })).body;
  }
  location.assign(`${form.dataset.page}/versions/${version.version}`);
}

function showChecks(details) {
  for (const found of Array.isArray(details) ? details : []) {
    const row = document.createElement("li");
    row.className = "bad";
    row.append(Object.assign(document.createElement("b"), { textContent: found.code }), ` ${found.message}`);
    checks.append(row);
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  send.disabled = true;
  checks.replaceChildren();
  try {
    await upload();
  } catch (error) {
    say(error.details ? "The adapter was refused:" : error.message);
    showChecks(error.details);
    send.disabled = false;
  }
});

input.addEventListener("change", () => choose(input.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}
