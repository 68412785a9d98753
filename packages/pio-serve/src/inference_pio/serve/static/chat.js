import { ask, element } from "/static/server.js";
import { events } from "/static/sse.js";

const byId = (id) => document.getElementById(id);
const [list, form, prompt, send, stop, error] = ["messages", "composer", "prompt", "send", "stop", "error"].map(byId);

let conversation = [];
let running = null; // the controller that stops the answer
let model = null;

async function findModel() {
  const { data } = await (await ask("/v1/models")).json();
  model = data[0]?.id ?? null;
  byId("model").textContent = model ?? "loading";
  if (model === null) setTimeout(() => findModel().catch(show), 1000);
}

function show(problem) {
  error.textContent = problem.message;
}

function addMessage(role, text) {
  byId("empty").hidden = true;
  const item = element("li", role);
  const body = element("div", "body", text);
  item.append(body);
  list.append(item);
  return { item, body };
}

function describe(times, tokens) {
  const parts = [];
  if (times.first !== null) {
    const seconds = (times.last - times.first) / 1000;
    parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
    if (tokens > 1 && seconds > 0) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
    parts.push(`TTFT ${(times.first - times.start).toFixed(0)} ms`);
  }
  return parts.join(" · ");
}

const page = document.querySelector("main");

// Appends text, and stays at the end unless the reader has scrolled away from it.
function append(target, text) {
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  target.append(text);
  if (atEnd) page.scrollTop = page.scrollHeight;
}

async function answer() {
  const { item, body } = addMessage("assistant", "");
  item.classList.add("working");
  const stats = element("div", "stats");
  item.append(stats);
  page.scrollTop = page.scrollHeight;
  const times = { start: performance.now(), first: null, last: null };
  let tokens = 0;
  let thought = null;
  let text = "";
  let ended = "";
  running = new AbortController();
  try {
    const reply = await ask("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model, messages: conversation, stream: true, stream_options: { include_usage: true } }),
      signal: running.signal,
    });
    for await (const chunk of events(reply.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) tokens = chunk.usage.completion_tokens;
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (choice.finish_reason === "length") ended = "reached its bound";
      const piece = choice.delta.content || choice.delta.reasoning_content;
      if (!piece) continue;
      times.last = performance.now();
      times.first ??= times.last;
      tokens += 1; // until the usage says how many there were
      if (choice.delta.content) {
        text += piece;
        append(body, piece);
      } else {
        thought ??= addThought(item, body);
        append(thought, piece);
      }
      stats.textContent = describe(times, tokens);
    }
  } catch (problem) {
    if (problem.name === "AbortError") ended = "stopped";
    else show(problem);
  } finally {
    running = null;
    item.classList.remove("working");
    stats.textContent = [describe(times, tokens), ended].filter(Boolean).join(" · ");
  }
  if (text) conversation.push({ role: "assistant", content: text });
  else {
    // Two questions in a row are no conversation: what was not answered can be asked again.
    const asked = conversation.pop();
    if (!thought) item.remove();
    if (!prompt.value) prompt.value = asked?.content ?? "";
  }
}

function addThought(item, body) {
  const details = element("details");
  const text = element("div");
  details.append(element("summary", "", "Reasoning"), text);
  item.insertBefore(details, body);
  return text;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || running) return;
  error.textContent = "";
  prompt.value = "";
  conversation.push({ role: "user", content: text });
  addMessage("user", text);
  send.hidden = true;
  stop.hidden = false;
  await answer();
  send.hidden = false;
  stop.hidden = true;
  prompt.focus();
});

prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

stop.addEventListener("click", () => running?.abort());

byId("clear").addEventListener("click", () => {
  if (running) return; // an answer belongs to its conversation: stop it first
  conversation = [];
  list.replaceChildren();
  byId("empty").hidden = false;
  error.textContent = "";
  prompt.focus();
});

findModel().catch(show);
