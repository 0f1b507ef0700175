// What Streamlit itself says on the page, in the person's language: it knows only English.
// Never touched is what stands in Markdown or code: the words of people, models and this project.

const SAID = ["aria-label", "title", "placeholder", "alt"];
const THEIRS = "[data-testid=stMarkdownContainer], code, textarea, script, style";
const BUTTONS = "[data-testid=stFileUploaderDropzone], [data-testid=stCameraInput]"; // Markdown of Streamlit's own
let watching;

export default function ({ data }) {
  watching?.disconnect();
  document.documentElement.lang = data.language;
  const words = data.words.map(([from, to]) => [patternOf(from), to.replace("*", "$1")]);
  watching = new MutationObserver((changes) => changes.forEach(({ target, addedNodes }) => {
    translate(target, words);
    addedNodes.forEach((node) => translateAll(node, words));
  }));
  translateAll(document.body, words);
  const everything = { subtree: true, childList: true, characterData: true, attributeFilter: SAID };
  watching.observe(document.body, everything);
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
