// The Streamlit page's copy button: one press, and the text is in the clipboard. Gradio has its own.

export default function ({ parentElement, data }) {
  const button = parentElement.querySelector("button");
  button.textContent = data.label;
  button.onclick = async () => {
    await copy(data.text);
    button.textContent = data.done;
    setTimeout(() => (button.textContent = data.label), 2000);
  };
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // A page that came over plain http from another machine has no clipboard of its own.
  const box = document.body.appendChild(document.createElement("textarea"));
  box.value = text;
  box.select();
  document.execCommand("copy");
  box.remove();
}
