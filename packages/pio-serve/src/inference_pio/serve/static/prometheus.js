// Prometheus' text format, as far as this server writes it: name{label="value",...} number

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;

export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    samples.push({ name: found[1], labels, value: found[3] === "+Inf" ? Infinity : Number(found[3]) });
  }
  return samples;
}

// The sum over all models and labels.
export function total(samples, name) {
  return samples.reduce((sum, sample) => (sample.name === name ? sum + sample.value : sum), 0);
}

export function largest(samples, name) {
  return samples.reduce((most, sample) => (sample.name === name ? Math.max(most, sample.value) : most), 0);
}
