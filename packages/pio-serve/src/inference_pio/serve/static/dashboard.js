import { largest, parse, total } from "/static/prometheus.js";
import { ServerError, ask, element } from "/static/server.js";

const EVERY_MS = 1000;
const KEPT = 120; // points, so two minutes
const SIZE = { width: 480, height: 170, left: 56, right: 6, top: 8, bottom: 20 };

const count = (value) => value.toFixed(0);
const rate = (value) => `${0 < value && value < 10 ? value.toFixed(1) : value.toFixed(0)}/s`;
const share = (value) => `${(value * 100).toFixed(0 < value && value < 0.1 ? 1 : 0)} %`;
const seconds = (value) => (value < 1 ? `${(value * 1000).toFixed(0)} ms` : `${value.toFixed(1)} s`);

const CHARTS = [
  { title: "Requests", least: 4, show: count, series: { running: (now) => now.running, waiting: (now) => now.waiting } },
  {
    title: "Throughput, tokens",
    least: 10,
    show: rate,
    series: {
      generated: (now, before) => perSecond(now, before, "generated"),
      read: (now, before) => perSecond(now, before, "read"),
    },
  },
  {
    title: "Latency",
    least: 0.1,
    show: seconds,
    series: {
      "first token": (now, before) => mean(now, before, "ttft"),
      "between tokens": (now, before) => mean(now, before, "itl"),
    },
  },
  { title: "KV cache", least: 0.1, most: 1, show: share, series: { used: (now) => now.cache } },
];

function measure(samples, time) {
  const histogram = (name) => ({ sum: total(samples, `pio:${name}_sum`), count: total(samples, `pio:${name}_count`) });
  return {
    time,
    running: total(samples, "pio:num_requests_running"),
    waiting: total(samples, "pio:num_requests_waiting"),
    generated: total(samples, "pio:generation_tokens_total"),
    read: total(samples, "pio:prompt_tokens_total"),
    cache: largest(samples, "pio:kv_cache_usage_perc"),
    ttft: histogram("time_to_first_token_seconds"),
    itl: histogram("inter_token_latency_seconds"),
  };
}

// A counter that fell belongs to a server that was started again.
function perSecond(now, before, name) {
  return before && now[name] >= before[name] ? ((now[name] - before[name]) * 1000) / (now.time - before.time) : null;
}

// Of the requests since the last point; null where there were none.
function mean(now, before, name) {
  const more = before ? now[name].count - before[name].count : 0;
  return more > 0 ? (now[name].sum - before[name].sum) / more : null;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

class Chart {
  constructor({ title, least, most = Infinity, show, series }) {
    Object.assign(this, { least, most, show });
    this.figure = element("figure");
    const caption = element("figcaption", "", title);
    this.series = Object.entries(series).map(([name, read], index) => {
      const label = element("span", index ? "value second" : "value", name);
      caption.append(label);
      return { name, read, label, className: index ? "series second" : "series", points: [], last: null };
    });
    this.drawing = svg("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "img", "aria-label": title });
    this.figure.append(caption, this.drawing);
  }

  add(now, before) {
    for (const line of this.series) {
      const value = line.read(now, before);
      line.points.push({ time: now.time, value });
      if (line.points.length > KEPT) line.points.shift();
      line.last = value ?? line.last;
      line.label.textContent = line.last === null ? line.name : `${line.name} ${this.show(line.last)}`;
    }
    this.draw(now.time);
  }

  draw(end) {
    const values = this.series.flatMap((line) => line.points.map((point) => point.value ?? 0));
    const top = Math.min(this.most, roundUp(Math.max(this.least, ...values)));
    const bottom = SIZE.height - SIZE.bottom;
    const x = (time) => SIZE.width - SIZE.right - ((end - time) / (KEPT * EVERY_MS)) * (SIZE.width - SIZE.left - SIZE.right);
    const y = (value) => bottom - (value / top) * (bottom - SIZE.top);
    const parts = [];
    for (const part of [0, 0.5, 1]) {
      const at = y(top * part);
      parts.push(svg("line", { class: "grid", x1: SIZE.left, x2: SIZE.width - SIZE.right, y1: at, y2: at }));
      const label = svg("text", { x: SIZE.left - 6, y: at + 4, "text-anchor": "end" });
      label.textContent = this.show(top * part);
      parts.push(label);
    }
    for (const [ago, anchor] of [[120, "start"], [60, "middle"], [0, "end"]]) {
      const label = svg("text", { x: x(end - ago * 1000), y: SIZE.height - 4, "text-anchor": anchor });
      label.textContent = ago ? `${ago} s ago` : "now";
      parts.push(label);
    }
    for (const line of this.series) {
      const seen = line.points.filter((point) => point.value !== null && x(point.time) >= SIZE.left);
      const path = seen.map((point, index) => `${index ? "L" : "M"}${x(point.time).toFixed(1)} ${y(point.value).toFixed(1)}`);
      if (seen.length === 1) path.push("h0.01"); // a round cap: a dot
      parts.push(svg("path", { class: line.className, d: path.join("") }));
    }
    this.drawing.replaceChildren(...parts);
  }
}

// An even number times a power of ten, so that its half is as round.
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [2, 4, 6, 8, 10].map((step) => step * unit).find((step) => step >= value * 0.999);
}

const charts = CHARTS.map((chart) => new Chart(chart));
document.getElementById("charts").append(...charts.map((chart) => chart.figure));

let before = null;

async function tick() {
  const state = document.getElementById("state");
  const error = document.getElementById("error");
  try {
    const samples = parse(await (await ask("/metrics")).text());
    const now = measure(samples, performance.now());
    const names = new Set(samples.map((sample) => sample.labels.model_name).filter(Boolean));
    document.getElementById("model").textContent = [...names].join(", ") || "loading";
    for (const chart of charts) chart.add(now, before);
    before = now;
    state.textContent = "live";
    error.textContent = "";
  } catch (problem) {
    state.textContent = "not connected";
    error.textContent = problem.message;
    if (problem instanceof ServerError && problem.status < 500) return; // refused: asking again changes nothing
  }
  setTimeout(tick, EVERY_MS);
}

tick();
