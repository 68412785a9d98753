// Requests to the server that this page came from, with the key that the user gave for this tab.

const NAME = "pio-api-key";

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let asking = null; // one question at a time, however many requests were refused

export async function ask(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(NAME);
    const headers = { ...options.headers };
    if (key) headers.authorization = `Bearer ${key}`;
    const reply = await fetch(path, { ...options, headers, cache: "no-store" });
    if (reply.ok) return reply;
    const message = await problem(reply);
    if (reply.status !== 401) throw new ServerError(message, reply.status);
    if (sessionStorage.getItem(NAME) !== key) continue; // another request has asked meanwhile
    asking ??= askForKey(key ? "The server does not know this key." : "This server asks for an API key.").finally(() => {
      asking = null;
    });
    await asking;
  }
}

async function problem(reply) {
  const text = await reply.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `the server answered with status ${reply.status}`;
  }
}

function askForKey(reason) {
  const dialog = element("dialog");
  const form = element("form");
  form.method = "dialog";
  const input = element("input");
  input.type = "password";
  input.required = true;
  input.autocomplete = "off";
  input.setAttribute("aria-label", "API key");
  form.append(
    element("h2", "", "API key"),
    element("p", "", `${reason} It is kept in this tab until you close it.`),
    input,
    element("button", "", "Continue"),
  );
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      const key = input.value.trim();
      if (!key) {
        reject(new ServerError("without an API key, the server does not answer; reload the page to enter one", 401));
        return;
      }
      sessionStorage.setItem(NAME, key);
      resolve();
    });
    dialog.addEventListener("cancel", () => {
      input.value = "";
    });
  });
}

export function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text; // never as HTML: models write what they like
  return made;
}
