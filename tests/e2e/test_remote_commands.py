"""`loraplex adapter` and `loraplex chat` against a real server: what a user types and what comes back."""

import json
import time

import click
import httpx
import pytest
from click.testing import CliRunner
from e2e.conftest import BASE
from e2e.server import shown_bytes

from loraplex.platform.cli import chat, push
from loraplex.platform.cli.adapter import create_if_missing
from loraplex.platform.cli.main import main
from loraplex.platform.cli.push import FILES, upload
from loraplex.platform.cli.remote import connect


@pytest.fixture
def run(site, monkeypatch):
    """Run a command as acme; the result has exit_code, stdout and stderr."""
    monkeypatch.setenv("LORAPLEX_URL", site.server.url)
    monkeypatch.setenv("LORAPLEX_API_KEY", site.acme)
    return lambda *arguments, **options: CliRunner().invoke(main, [str(a) for a in arguments], **options)


def test_a_pushed_adapter_is_listed_shown_called_and_deleted(run, make_adapter, tmp_path):
    """The way of an adapter through the command line, from folder to 404."""
    folder = make_adapter(tmp_path / "lora", rank=4, modules=("v_proj",), seed=7)

    pushed = run("adapter", "push", folder, "cli", "--alias", "prod")
    assert pushed.exit_code == 0, pushed.output
    assert "loraplex chat acme/cli@prod" in pushed.stdout
    sizes = {file: (folder / file).stat().st_size / 1e3 for file in FILES}
    assert shown_bytes(pushed.stderr) == {file: f"{size:.1f}/{size:.1f} kB" for file, size in sizes.items()}
    assert "acme/cli" in run("adapter", "list").stdout
    shown = json.loads(run("adapter", "show", "cli", "--json").stdout)
    assert shown["aliases"]["prod"]["split"] == {"1": 1}
    assert (shown["versions"][0]["rank"], shown["versions"][0]["targets"]) == (4, ["v_proj"])
    assert "acme/cli@1" in run("adapter", "show", "cli").stdout

    assert "ready" in run("adapter", "show", "cli").stdout
    assert "acme/cli@1 is being loaded" in run("adapter", "warm", "cli", 1).stdout

    answered = run("chat", "cli", "Hello", "--max-tokens", 4)
    assert answered.exit_code == 0, answered.output
    assert run("adapter", "delete", "cli").exit_code == 0
    gone = run("chat", "cli", "Hello")
    assert gone.exit_code == 1
    assert "(model_not_found)" in gone.stderr


def test_pushing_again_gives_the_next_version(run, make_adapter, tmp_path):
    """New bytes are a new version; the same bytes are the version that has them."""
    first, second = (make_adapter(tmp_path / str(seed), rank=2, seed=seed) for seed in (1, 2))

    versions = [
        json.loads(run("adapter", "push", folder, "again", "--json").stdout)["version"]
        for folder in (first, second, first)
    ]

    assert versions == [1, 2, 1]
    listed = json.loads(run("adapter", "list", "--json").stdout)
    assert [a["versions"] for a in listed if a["name"] == "again"] == [[1, 2]]
    assert json.loads(run("adapter", "delete", "again", "--json").stdout) == {"name": "again", "deleted": True}


class BreakingTransport(httpx.HTTPTransport):
    """The network, but the connection breaks amid the body of the first few PATCHes. `seen`: method and path."""

    def __init__(self, breaks):
        super().__init__()
        self.breaks = breaks
        self.seen = []

    def handle_request(self, request):
        self.seen.append((request.method, request.url.path))
        if request.method == "PATCH" and self.breaks:
            self.breaks -= 1
            request.stream = BreakingStream(request.stream)
        return super().handle_request(request)


class BreakingStream(httpx.SyncByteStream):
    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        for block in self.stream:
            yield block[: len(block) // 2]
            raise httpx.WriteError("the cable is out")


def through(transport, site):
    headers = {"authorization": f"Bearer {site.acme}"}
    return httpx.Client(base_url=site.server.url, headers=headers, transport=transport)


def wait_a_little(_seconds):
    time.sleep(0.1)


def test_a_push_goes_on_when_its_connection_breaks(site, run, make_adapter, tmp_path, capsys):
    """By itself, within one run; the version has the bytes of the folder, and no byte counts twice in the bar."""
    folder = make_adapter(tmp_path / "lora", rank=8, seed=31)
    network = BreakingTransport(breaks=3)
    with through(network, site) as client:
        create_if_missing(client, "broken")
        version = upload(client, folder, "broken", wait_a_little)

    size = (folder / FILES[1]).stat().st_size
    assert (version["state"], version["size_bytes"]) == ("ready", size)
    assert shown_bytes(capsys.readouterr().err)[FILES[1]] == f"{size / 1e3:.1f}/{size / 1e3:.1f} kB"
    assert [path for method, path in network.seen if method == "POST"].count("/api/v1/uploads") == 1
    assert sum(method == "PATCH" for method, _ in network.seen) >= len(FILES) + 3
    assert run("adapter", "delete", "broken").exit_code == 0


def test_a_push_that_was_ended_goes_on_when_it_is_run_again(site, run, make_adapter, tmp_path):
    """The second run opens nothing: it finds the upload and sends what is missing."""

    def give_up(_seconds):
        raise KeyboardInterrupt

    folder = make_adapter(tmp_path / "lora", rank=8, seed=32)
    network = BreakingTransport(breaks=1)
    with through(network, site) as client:
        create_if_missing(client, "ended")
        with pytest.raises(KeyboardInterrupt):
            upload(client, folder, "ended", give_up)
        begun = client.get("/api/v1/uploads").json()["data"]
        network.seen.clear()
        upload(client, folder, "ended", wait_a_little)
        posted = [path for method, path in network.seen if method == "POST"]

    assert posted == [f"/api/v1/uploads/{begun[0]['id']}/complete"]
    assert len(begun) == 1
    assert run("adapter", "delete", "ended").exit_code == 0


def test_a_push_without_a_server_ends():
    """After a bounded number of longer and longer pauses, with the advice to run it again."""
    pauses = []
    nowhere = httpx.Client(base_url="http://127.0.0.1:1")
    with nowhere, pytest.raises(click.ClickException, match="Run the command again"):
        push._open(nowhere, "bot", [], pauses.append)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_aliases_move_split_and_roll_back(run, make_adapter, tmp_path):
    """Each command says what the alias stands for then; a lost race and nonsense are told in one line."""
    for seed in (1, 2):
        folder = make_adapter(tmp_path / str(seed), rank=2, seed=seed)
        assert run("adapter", "push", folder, "moving").exit_code == 0
    assert "version 1 (revision 1)" in run("alias", "move", "moving", "prod", "1").stdout
    split = run("alias", "move", "moving", "prod", "1=90", "2=10", "--if-revision", "1")
    assert "2 (10%), 1 (90%) (revision 2)" in split.stdout
    assert "prod → 2 (10%), 1 (90%)" in run("adapter", "show", "moving").stdout
    lost = run("alias", "move", "moving", "prod", "2", "--if-revision", "1")
    assert (lost.exit_code, "(alias_moved)" in lost.stderr) == (1, True)
    assert "version 1 (revision 3)" in run("alias", "rollback", "moving", "prod").stdout
    assert "revision 1" in run("alias", "history", "moving", "prod").stdout
    assert json.loads(run("alias", "history", "moving", "prod", "--json").stdout)[1]["split"] == {"1": 90, "2": 10}
    assert run("alias", "delete", "moving", "prod").exit_code == 0
    for nonsense in (("x",), ("1=x",), ("1", "1=2"), ()):
        assert run("alias", "move", "moving", "prod", *nonsense).exit_code == 2
    assert run("adapter", "delete", "moving").exit_code == 0


def test_a_folders_chat_template_comes_along_and_a_profile_is_set_shown_and_cleared(run, make_adapter, tmp_path):
    """chat_template.jinja before tokenizer_config.json, as Transformers reads a folder; sampling beside it."""
    folder = make_adapter(tmp_path / "lora", rank=2, seed=9)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "from the config"}))
    pushed = json.loads(run("adapter", "push", folder, "styled", "--json").stdout)
    assert pushed["profile"] == {"chat_template": "from the config"}
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}!")
    pushed = json.loads(run("adapter", "push", folder, "styled", "--json").stdout)
    assert (pushed["version"], pushed["profile"]) == (1, {"chat_template": "{{ messages[-1].content }}!"})
    assert json.loads(run("chat", "styled", "abc", "--json").stdout)["usage"]["prompt_tokens"] == len("abc!")

    (tmp_path / "profile.json").write_text(json.dumps({"temperature": 0.5, "max_tokens": 3, "system_prompt": "Grüß!"}))
    changed = run("adapter", "profile", "set", "styled", 1, "--from", tmp_path / "profile.json")
    assert (changed.exit_code, changed.stdout) == (0, run("adapter", "profile", "show", "styled", 1).stdout)
    assert changed.stdout == "chat_template: its own\nsystem_prompt: Grüß!\ntemperature: 0.5\nmax_tokens: 3\n"
    assert json.loads(run("chat", "styled", "abc", "--json").stdout)["usage"]["completion_tokens"] == 3
    refused = run("adapter", "profile", "set", "styled", 1, "--from", "-", input='{"temperature": 9}')
    assert (refused.exit_code, "'temperature'" in refused.stderr) == (1, True)
    assert run("adapter", "profile", "clear", "styled", 1).exit_code == 0
    assert "has none" in run("adapter", "profile", "show", "styled", 1).stderr
    assert run("adapter", "delete", "styled").exit_code == 0


def test_a_refused_adapter_tells_every_failed_check(run, make_adapter, tmp_path):
    """Code, place and remedy of each, one a line."""
    folder = make_adapter(tmp_path / "lora", rank=2)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_qalora": True}))
    (folder / "adapter_model.safetensors").write_bytes(b"pickle")

    refused = run("adapter", "push", folder, "refused")

    assert refused.exit_code == 1
    assert "refused (adapter_invalid)" in refused.stderr
    assert "qalora_unsupported" in refused.stderr
    assert len(refused.stderr.split("refused (adapter_invalid):")[1].strip().splitlines()) == 2


def test_a_folder_without_weights_is_refused_before_anything_is_sent(run, tmp_path):
    """The message names the missing file."""
    (tmp_path / "adapter_config.json").write_text("{}")
    refused = run("adapter", "push", tmp_path, "empty")
    assert "has no adapter_model.safetensors" in refused.stderr
    assert "empty" not in run("adapter", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adapter", "show", "../tickets"), "Error: "),
        (("adapter", "delete", "absent"), "adapter_not_found"),
        (("adapter", "list", "--key", "lk_wrong"), "invalid_api_key"),
        (("adapter", "list", "--key", "ключ"), "cannot be used"),
        (("adapter", "list", "--key", ""), "no API key"),
        (("adapter", "list", "--url", "http://127.0.0.1:1"), "no server answers"),
        (("adapter", "list", "--url", "ftp://127.0.0.1"), "unsupported protocol"),
        (("chat", BASE, "--json"), "needs a PROMPT"),
        (("chat", BASE, "hi", "--temperature", "3"), "--temperature"),
    ],
)
def test_mistakes_are_told_in_a_line_and_a_non_zero_exit(run, arguments, message):
    """No traceback, the reason, and what to do."""
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_one_answer_as_text_and_as_json_is_the_same(run):
    """At temperature 0 both forms hold the same text; JSON adds usage and times."""
    ask = ("chat", "tickets", "Hello", "--max-tokens", 8, "--system", "Be brief.")
    answer = json.loads(run(*ask, "--json").stdout)

    assert run(*ask).stdout == answer["text"] + "\n"
    assert answer["model"] == "acme/tickets@1"
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 8)
    assert 0 < answer["first_token_seconds"] <= answer["seconds"]


def test_a_prompt_can_come_from_standard_input(run):
    """`echo Hello | loraplex chat tickets` is `loraplex chat tickets Hello`."""
    piped = run("chat", "tickets", "--max-tokens", 8, input="Hello\n")
    assert piped.stdout == run("chat", "tickets", "Hello", "--max-tokens", 8).stdout


def converse(site, lines):
    """The conversation after these lines were typed, what was shown, and the errors."""
    messages = [{"role": "system", "content": "Be brief."}]
    typed = "".join(f"{line}\n" for line in lines)
    with connect(site.server.url, site.acme) as client, CliRunner().isolation(typed) as streams:
        chat.converse(client, chat.Request("tickets", temperature=0, max_tokens=4), messages)
        output, errors = (stream.getvalue().decode() for stream in streams[:2])
    return messages, output, errors


def test_a_conversation_remembers_its_turns(site):
    """Each turn sends the turns before it; a refused turn is told and forgotten."""
    messages, output, errors = converse(site, ["one", "x" * 600, "two"])

    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message["content"] for message in messages[1::2]] == ["one", "two"]
    assert output.count("4 tokens in") == 2
    assert "context_length_exceeded" in errors


def test_a_cleared_conversation_starts_anew(site):
    """/clear forgets all turns and keeps the system message; the same words then get the same answer."""
    messages, _, _ = converse(site, ["one", "/clear", "two"])

    assert messages == converse(site, ["two"])[0]
    assert len(messages) == 3
