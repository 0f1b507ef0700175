"""What Ollama makes of a Modelfile: its template's text, in the few words of Go's text/template it uses.

Anything else in a template is an error here, so that no test passes on what was not understood.
"""

import re
from dataclasses import dataclass

ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.S)
LEADING, TRAILING = re.compile(r"^[ \t\r\n]+"), re.compile(r"[ \t\r\n]+$")

# The same by Go itself: reads [[{"Role": …, "Content": …}, …], …] and writes the texts.
GO = """package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	parsed := template.Must(template.New("").Parse(os.Args[1]))
	var all [][]Message
	json.NewDecoder(os.Stdin).Decode(&all)
	texts := []string{}
	for _, messages := range all {
		var text bytes.Buffer
		if err := parsed.Execute(&text, map[string]any{"Messages": messages}); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


@dataclass(frozen=True)
class Modelfile:
    model: str
    template: str
    system: str
    stops: list[str]


def read_modelfile(text: str) -> Modelfile:
    """Raises ValueError for an instruction that is not known here."""
    parts = re.findall(r'(?m)^([A-Z]+) +("""(?:.|\n)*?"""|.*)$', text)
    assert "\n".join(f"{name} {value}" for name, value in parts).strip() == text.strip(), text
    values: dict[str, list[str]] = {name: [] for name, _ in parts}
    for name, value in parts:
        values[name].append(value.removeprefix('"""').removesuffix('"""'))
    if unknown := set(values) - {"FROM", "TEMPLATE", "SYSTEM", "PARAMETER"}:
        raise ValueError(f"unknown in a Modelfile: {unknown}")
    stops = [re.fullmatch(r'stop "(.*)"', value) for value in values.get("PARAMETER", [])]
    (model,), (template,) = values["FROM"], values["TEMPLATE"]
    return Modelfile(model, template, "".join(values.get("SYSTEM", [])), [stop[1] for stop in stops if stop])


def rendered(template: str, messages: list) -> str:
    """The prompt. Raises ValueError for an action other than range .Messages, .Role, .Content and end."""
    pieces = _pieces(template)
    begin, end = pieces.index("range .Messages"), pieces.index("end")
    inner, fields = pieces[begin + 1 : end], {".Role": "role", ".Content": "content"}
    if begin % 2 == 0 or set(inner[1::2]) - set(fields) or len(pieces) != end + 2 or begin != 1:
        raise ValueError(f"not known here: {template}")
    turns = [
        "".join(message[fields[piece]] if i % 2 else piece for i, piece in enumerate(inner))
        for message in messages
    ]
    return pieces[0] + "".join(turns) + pieces[-1]


def _pieces(template: str) -> list[str]:
    """Texts and actions in turn, a text first and last; `{{-` and `-}}` have eaten their spaces."""
    pieces, at, eats = [], 0, False
    for action in ACTION.finditer(template):
        text = template[at : action.start()]
        text = LEADING.sub("", text) if eats else text
        pieces += [TRAILING.sub("", text) if action[1] else text, action[2]]
        at, eats = action.end(), bool(action[3])
    return [*pieces, LEADING.sub("", template[at:]) if eats else template[at:]]
