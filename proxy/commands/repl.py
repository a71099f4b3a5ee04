"""The conversation of `illm chat` on a terminal: a line is a question, one that begins with a slash a command.

Ctrl-C ends an answer or empties the line, never the program; Ctrl-D or /exit does. How an answer looks is
in `screen`. Editing of lines is readline's, where Python has it; nothing typed is written to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from proxy import wire
from proxy.commands.answering import advice, answer
from proxy.commands.client import Server
from proxy.commands.conversation import Conversation, picture
from proxy.commands.say import aligned, printable, say
from proxy.commands.screen import Screen, summary
from proxy.commands.source import Failed, UsageError

HELP: Final = (
    ("/model [NAME]", "another model; without a name, choose from a list"),
    ("/system [TEXT]", "set the system prompt; without a text, take it away"),
    ("/image FILE_OR_URL", "a picture for the next message"),
    ("/history N", "how many messages are sent along; 0: each question stands alone"),
    ("/retry", "ask the last question again"),
    ("/clear", "forget what was said"),
    ("/save FILE", "the conversation as text, or as JSON for FILE.json"),
    ("/help", "this list"),
    ("/exit", "end; so does Ctrl-D. Ctrl-C ends an answer only"),
    ('""" or \\', "a line that begins with three quotes, or ends with a backslash, goes on in the next"),
)
QUOTES: Final = '"""'


class Repl:
    """One conversation. `options`: members of every request; `images`: for the first message."""

    def __init__(
        self, asked: Server, model: str | None, talk: Conversation, options: dict[str, Any], images: list[str]
    ) -> None:
        self._asked = asked
        self._model = model
        self._talk = talk
        self._options = options
        self._images = images
        self._saved: set[Path] = set()
        self._screen = Screen()
        self._commands: Final[dict[str, Callable[[str], None]]] = {
            "/model": self._choose_model,
            "/system": self._set_system,
            "/image": self._add_image,
            "/history": self._set_history,
            "/retry": self._retry,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: say("\n".join(aligned(HELP))),
        }

    def run(self) -> None:
        """Blocks until the user has enough. Raises `Failed` only where there is no model to talk to."""
        _edit_lines([*self._commands, "/exit"])
        if self._model is None:
            self._choose_model("")
        if self._model is None:
            return
        say(f"{self._model} at {self._asked.url}. /help lists commands, Ctrl-D ends.")
        while True:
            try:
                line = self._line()
            except EOFError:
                say("")
                return
            except KeyboardInterrupt:
                say("")
                continue
            if line.split(" ")[0] in ("/exit", "/quit"):
                return
            try:
                self._take(line)
            except KeyboardInterrupt:
                self._talk.drop_question()
                say("")
            except (Failed, UsageError) as exc:
                say(f"{exc}")

    def _line(self) -> str:
        """What is typed next, which may be several lines."""
        mark = f"[{len(self._images)} picture{'s' if len(self._images) > 1 else ''}] " if self._images else ""
        line = input(f"{mark}> ")
        if line.startswith(QUOTES):
            lines = [line.removeprefix(QUOTES)]
            while not lines[-1].rstrip().endswith(QUOTES):
                lines.append(input(". "))
            return "\n".join(lines).rstrip().removesuffix(QUOTES).strip()
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input(". ")
        return line

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            self._talk.ask(line, self._images)
            self._answer()
            return
        name, _, rest = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise UsageError(f"there is no command {name}; /help lists them. A message may begin with a space and a /")
        command(rest.strip())

    def _answer(self) -> None:
        """Ask the last question. Where it fails, `/retry` has it, and its pictures wait for the next one."""
        body = {"model": self._model, "messages": self._talk.sent(), **self._options}
        self._screen.wait("waiting")
        try:
            got = answer(self._asked, body, self._screen.show)
        except Failed as exc:
            self._screen.end()
            self._talk.drop_question()
            raise Failed(
                f"{exc}{advice(exc, 'ask with fewer messages (/history N), or begin anew (/clear)')}"
            ) from None
        self._screen.end()
        self._images = []
        if got.text:
            self._talk.answered(got.text)
        else:
            self._talk.drop_question()
        self._screen.note(summary(got))

    # -- commands --------------------------------------------------------------------------------------------

    def _choose_model(self, name: str) -> None:
        entries = self._asked.settle()
        names = [str(entry["id"]) for entry in entries]
        if not name:
            if not names:
                raise Failed(f"{self._asked.url} lists no models; name one: illm chat MODEL")
            rows = [
                [f"{number:3}", printable(str(entry["id"])), str(entry.get("state") or "")]
                for number, entry in enumerate(entries, 1)
            ]
            say("\n".join(aligned(rows)))
            given = _prompt("Which model? A number or a name: ")
            number = int(given) if given.isascii() and given.isdigit() else 0
            name = names[number - 1] if 0 < number <= len(names) else given
        if not name:
            return
        if names and name not in names:
            raise UsageError(f"there is no model {name!r}; it has: {', '.join(names)}")
        self._model = name
        self._screen.note(f"model: {name}")

    def _set_system(self, text: str) -> None:
        self._talk.system = text or None
        self._screen.note("system prompt set" if text else "no system prompt")

    def _add_image(self, source: str) -> None:
        if not source:
            raise UsageError("which one? /image FILE_OR_URL")
        self._images.append(picture(source))

    def _set_history(self, text: str) -> None:
        if text and not (text.isascii() and text.isdigit()):
            raise UsageError("a number is needed: /history 20")
        self._talk.window = int(text) if text else self._talk.window
        self._screen.note(f"{self._talk.window} messages are sent along with a question")

    def _retry(self, _: str) -> None:
        if not self._talk.take_back():
            raise UsageError("nothing was asked yet")
        self._answer()

    def _clear(self, _: str) -> None:
        self._talk.forget()
        self._images = []
        self._screen.note("forgotten")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("where to? /save FILE")
        path = Path(name).expanduser().absolute()
        if path.exists() and path not in self._saved:
            raise UsageError(f"{name} is there already; choose another name")
        text = wire.dump(self._talk.whole()).decode() + "\n" if path.suffix == ".json" else self._talk.transcript()
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as exc:
            raise UsageError(f"{name} can't be written: {exc.strerror}") from None
        self._saved.add(path)
        self._screen.note(f"saved to {name}")


def _prompt(text: str) -> str:
    try:
        return input(text).strip()
    except EOFError:
        say("")
        return ""


def _edit_lines(words: list[str]) -> None:
    """Arrow keys and the lines before, and Tab for commands, where Python has readline."""
    with suppress(ImportError):
        import readline

        readline.set_completer(lambda text, state: [*(w for w in words if text and w.startswith(text)), None][state])
        readline.set_completer_delims(" ")
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
