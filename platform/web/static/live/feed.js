// Frames from the server, for as long as somebody looks. The stream ends every minute, and is asked for again.

const PAUSES = [500, 1000, 2000, 5000];

async function* frames(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [name, data] = parts(block);
      if (name === "error") throw new Error(JSON.parse(data).error.message);
      if (name === "message" && data) yield JSON.parse(data);
    }
  }
}

function parts(block) {
  let name = "message";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  return [name, data];
}

export class Feed {
  // onFrame: of each frame; onState: "live", "connecting" or "lost", and why.
  constructor(url, onFrame, onState) {
    Object.assign(this, { url, onFrame, onState, running: null });
  }

  start() {
    if (this.running) return;
    this.running = new AbortController();
    this.follow(this.running.signal);
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  async follow(signal) {
    for (let failures = 0; !signal.aborted; ) {
      try {
        // Nobody need be there for this: it does not keep the session from going idle.
        const answer = await fetch(this.url, { signal, headers: { "hx-request": "true" } });
        if (!answer.ok) throw new Error((await answer.json()).error.message);
        for await (const frame of frames(answer)) {
          failures = 0;
          if (signal.aborted) return;
          this.onState("live");
          this.onFrame(frame);
        }
      } catch (error) {
        if (signal.aborted) return;
        this.onState("lost", error instanceof TypeError ? "The server cannot be reached." : error.message);
        const pause = PAUSES[Math.min(failures++, PAUSES.length - 1)];
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    }
  }
}
