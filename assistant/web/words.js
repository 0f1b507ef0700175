// What Streamlit itself says on the page, in the person's language: it knows only English.
// Never touched is what stands in Markdown or code: the words of people, models and this project.
// Beside that, what a page cannot do from Python: keep the chosen language, and let Esc stop an answer.

const SAID = ["aria-label", "title", "placeholder", "alt"];
const THEIRS = "[data-testid=stMarkdownContainer], code, textarea, script, style";
const BUTTONS = "[data-testid=stFileUploaderDropzone], [data-testid=stCameraInput]"; // Markdown of Streamlit's own
let watching;

export default function ({ data }) {
  watching?.disconnect();
  document.documentElement.lang = data.language;
  if (data.kept) keep(data.kept);
  addEventListener("keydown", stopOnEscape); // once: it is the same function each time
  const words = data.words.map(([from, to]) => [patternOf(from), to.replace("*", "$1")]);
  watching = new MutationObserver((changes) => changes.forEach(({ target, addedNodes }) => {
    translate(target, words);
    addedNodes.forEach((node) => translateAll(node, words));
  }));
  translateAll(document.body, words);
  const everything = { subtree: true, childList: true, characterData: true, attributeFilter: SAID };
  watching.observe(document.body, everything);
}

function keep(cookie) {
  // Inside a frame of another site, as hosts of such pages show them, only https allows it.
  const place = location.protocol === "https:" ? "SameSite=None; Secure; Partitioned" : "SameSite=Lax";
  document.cookie = `${cookie}; Path=/; Max-Age=31536000; ${place}`;
}

function stopOnEscape(event) {
  const seen = (selector) => [...document.querySelectorAll(selector)].find((node) => node.checkVisibility());
  const isOpen = seen("[data-testid=stPopoverBody], [role=listbox], [role=dialog]"); // that is what closes then
  if (event.key === "Escape" && !event.isComposing && !isOpen) seen("[data-testid=stChatInputStopButton]")?.click();
}

function patternOf(said) {
  const plain = said.replace(/[.+?()[\]\\]/g, "\\$&");
  return new RegExp(`^${plain.replace("*", "(.+)")}$`);
}

function translateAll(node, words) {
  translate(node, words);
  node.childNodes.forEach((child) => translateAll(child, words));
}

function translate(node, words) {
  if (node.nodeType === Node.TEXT_NODE) {
    const place = node.parentElement;
    if (place?.closest(BUTTONS) || !place?.closest(THEIRS)) change(node.nodeValue, words, (said) => (node.nodeValue = said));
  } else if (node.nodeType === Node.ELEMENT_NODE) {
    SAID.filter((name) => node.hasAttribute(name)).forEach((name) =>
      change(node.getAttribute(name), words, (said) => node.setAttribute(name, said)));
  }
}

function change(said, words, set) {
  const found = words.find(([pattern]) => pattern.test(said.trim()));
  if (found) set(said.trim().replace(...found));
}
