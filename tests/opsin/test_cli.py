"""The `opsin` command as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from models.bundle import BundleSpec, read, write
from models.bundle_schema import FileDigest, Preprocess, Rung
from opsin import Client
from opsin.cli.demo.labels import show_actions
from opsin.cli.shared import output_files
from opsin.image_encoding import png
from opsin.results import Model
from tests.support.fake_servers import RESULT, Answer, Request, serve_script
from tests.support.processes import environment, opsin
from tests.support.queue import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny@1`."""
    root = tmp_path_factory.mktemp("bundles")
    weights = root / "weights.safetensors"
    save_file({"head.weight": np.zeros((2, 3), np.float32)}, weights)
    spec = BundleSpec(
        name="tiny",
        version="1",
        task="classify",
        architecture="null",
        config={"milliseconds": 1.0, "classes": 2, "tokens": 5},
        preprocess=Preprocess(image_size=32, short_side=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        labels=["cats", "dogs"],
        license="CC0-1.0",
        description="Two animals",
        provenance={"data": "none"},
        ladder=[Rung(name="fast", schedule=8, accuracy=0.875, throughput=1.5), Rung(name="faster", schedule=[9, 1])],
        default_rung="fast",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    write(root, spec, weights)
    return root


UNREADABLE = "/proc/self/mem"
"""A regular file that can be opened, but whose first bytes cannot be read, by root either."""
PICTURE = b"\x89PNG, and what the service makes of it"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "cat.jpg"
    file.write_bytes(PICTURE)
    return file


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['opsin', '--help']\n"
        "from opsin.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'httpx2', 'fastapi', 'redis', 'server', 'models', 'kernels', 'training'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    visible = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert (visible.returncode, visible.stderr) == (0, "")
    assert all(
        f" {name} " in visible.stdout for name in ["serve", "gateway", "worker", "demo", "classify", "import", "bundles", "train", "bench"]
    )


def test_importing_opsin_is_light_and_still_offers_the_client() -> None:
    code = (
        "import sys, opsin; assert not {'httpx2', 'numpy'} & set(sys.modules); "
        "opsin.Client; opsin.AsyncClient; opsin.Refused; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_bare_checkout_with_libraries_explains_installation(tmp_path: Path) -> None:
    """The processes of a service import nothing from the working folder, and would die for ever."""
    inputs = {name: value for name, value in os.environ.items() if not name.startswith(("OPSIN_", "PYTHON"))}
    program = [environment(tmp_path) / "python", "-m", "opsin", "serve"]
    ended = subprocess.run(program, cwd=ROOT, env=inputs, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith(
        "opsin: `opsin serve` starts processes, which cannot import opsin from the working folder: `pip install -e .`"
    )


def test_a_clip_that_cannot_be_kept_is_left_out_of_the_demo(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Client("http://127.0.0.1:9") as unconnected:
        show_actions(unconnected, Model("actions", "1", "actions", "ready", {}), picture / "data", tmp_path, Console())
    assert "The video is skipped, since its clip cannot be downloaded." in capsys.readouterr().out


def test_a_demo_without_a_place_for_what_it_makes_starts_nothing() -> None:
    ended = opsin("demo", "--output", "README.md/here")
    output = "opsin: demo: README.md/here: cannot be created (Not a directory); name another folder with --output\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", output)


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert opsin("--version").stdout.split() == ["opsin", version("opsin")]


def test_a_benchmark_explains_its_own_arguments() -> None:
    assert "opsin bench" in opsin("bench", "--help").stdout
    ours = opsin("bench", "steps", "--help")
    assert ours.returncode == 0 and ours.stdout.startswith("usage: python -m benchmarks.steps")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sevre"], "opsin: No such command 'sevre'"),
        (["serve", "--prot", "1"], "opsin serve: No such option: --prot"),
        (["serve", "--port", "99999"], "opsin: setting port: Input should be less than or equal to 65535, not 99999"),
        (["serve", "--config", "/nowhere.yaml"], "opsin: /nowhere.yaml: no such settings file"),
        (["serve", "--config", "/dev/zero"], "opsin: /dev/zero: not a regular file, which each process must be able to read"),
        (["serve", "--config", "/dev/null", "--port", "99999"], "opsin: setting port: Input should be less than"),
        (["gateway"], "opsin: `opsin gateway` needs the queue's address: --redis URL or OPSIN_REDIS_URL"),
        (["worker"], "opsin: `opsin worker` needs the queue's address: --redis URL or OPSIN_REDIS_URL"),
        *(
            (
                [command, "--redis", "localhost:6379"],
                "opsin: setting redis_url: Redis URL 'localhost:6379': must start with one of redis://, rediss://, ",
            )
            for command in ("serve", "gateway", "worker")
        ),
        (["serve", "--bundles", "/nowhere"], "opsin: setting bundles: /nowhere cannot be read (No such file or directory); name the "),
        (["serve", "--bundles", "README.md"], "opsin: setting bundles: README.md cannot be read (Not a directory); name the folder "),
        (
            ["worker", "--redis", "redis://127.0.0.1:1", "--bundles", "/nowhere"],
            "opsin: setting bundles: /nowhere cannot be read (No such file or directory); name the folder ",
        ),
        (["classify"], "opsin classify: Missing argument '"),
        (["classify", "docs"], "opsin: docs: a folder; name its images, videos or sounds, such as docs/*"),
        (["classify", "/nowhere.jpg"], "opsin: /nowhere.jpg: no such file"),
        (["classify", "README.md", "--later", "--json"], "opsin: --json: cannot be combined with --later"),
        (["inpaint", "README.md", "-o", "docs"], "opsin: docs: cannot be written (it is a folder)"),
        (
            ["inpaint", "README.md", "-o", "no/filled.png", "--samples", "2"],
            "opsin: no/filled-1.png: cannot be written (there is no folder no)",
        ),
        (["reconstruct", "README.md", "--points", "README.md", "--picture", "no/sides.png"], "opsin: no/sides.png: cannot be written"),
        (["actions", "README.md", "--json", "no/people.json"], "opsin: no/people.json: cannot be written (there is no folder no)"),
        (["actions", "README.md", "-o", "people.avi"], "opsin: people.avi: the file's name must end in .mp4"),
        (["bundles", "list", "--bundles", "/nowhere"], "opsin: /nowhere: no such folder; name it with --bundles"),
        (["bench", "nothing"], "opsin: bench: unknown benchmark 'nothing'; available: "),
        (
            ["import", "x.onnx", "-o", "x", "--as", "segment"],
            "opsin import: Invalid value for '--as': 'segment' is not one of 'classify', 'embed'",
        ),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    ended = opsin(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(sentence)
    assert ended.stderr.count("\n") == 1


def test_a_broken_settings_file_is_named_not_traced(tmp_path: Path) -> None:
    config = tmp_path / "opsin.yaml"
    config.write_text("wrokers: 2\n")
    ended = opsin("serve", "--config", config)
    assert ended.returncode == 2
    assert ended.stderr == f"opsin: {config}: unknown setting 'wrokers'\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"opsin\n", "opsin: settings: {config} holds no lines such as `port: 9000` ("),
        (b"- port\n", "opsin: settings: {config} holds no lines such as `port: 9000` ("),
        (b"9000\n", "opsin: settings: {config} holds no lines such as `port: 9000` ("),
        (b"host: \xff\n", "opsin: settings: {config} holds no lines such as `port: 9000` ("),
        (b"port: [\n", "opsin: settings: while parsing a flow node"),
        (b"default_models: {clasify: flags}\n", "opsin: setting default_models: unknown task 'clasify'; available: classify, "),
        (
            b"redis_url: redis://here/one\n",
            "opsin: setting redis_url: Redis URL 'redis://here/one': what follows the host is the number of a database, such as /0",
        ),
        (b"redis_url: 'unix://'\n", "opsin: setting redis_url: Redis URL 'unix://': names no socket; write unix:///run/valkey.sock"),
        (
            b"redis_url: rediss://here?ssl_cert_reqs=perhaps\n",
            "opsin: setting redis_url: Redis URL 'rediss://here?ssl_cert_reqs=perhaps': ",
        ),
        (b"host: ''\n", "opsin: setting host: write a value, or unset it, not ''"),
        (b"bundles: /nowhere\n", "opsin: setting bundles: /nowhere cannot be read (No such file or directory); name the folder "),
        (b"cache: ''\n", "opsin: setting cache: write a value, or unset it, not ''"),
        (b"result_ttl: .inf\n", "opsin: setting result_ttl: Input should be a finite number, not inf"),
        (b"on: 3\n", "opsin: settings: {config} holds no lines such as `port: 9000` ("),
        (b"redis_url: redis://here/0?foo=bar\n", "opsin: setting redis_url: Redis URL 'redis://here/0?foo=bar': an option is unknown ("),
        (b"device: gpu\n", "opsin: setting device: use auto, cpu, cuda, cuda:1, cuda:0,2 or cuda:all, not 'gpu'\n"),
        (b"dtype: float64\n", "opsin: setting dtype: Input should be 'auto', 'float32', 'bfloat16' or 'float16', not 'float64'\n"),
        (
            b"trusted_proxies: [here]\n",
            "opsin: setting trusted_proxies: 'here' does not appear to be an IPv4 or IPv6 network, not ['here']\n",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_at_start(tmp_path: Path, content: bytes, sentence: str) -> None:
    config = tmp_path / "opsin.yaml"
    config.write_bytes(content)
    ended = opsin("serve", "--config", config)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(sentence.format(config=config))
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["serve"], ["worker", "--redis", "redis://127.0.0.1:1"]])
def test_missing_bundles_of_environment_are_misuse(command: list[str]) -> None:
    ended = opsin(*command, OPSIN_BUNDLES="/nowhere")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith("opsin: setting bundles: /nowhere cannot be read (No such file or directory)")


@pytest.mark.parametrize(("name", "value"), [("default_models", "flags"), ("cors_origins", "https://example.org")])
def test_list_or_map_in_environment_must_be_json(name: str, value: str) -> None:
    ended = opsin("serve", **{f"OPSIN_{name.upper()}": value})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"opsin: setting {name}: OPSIN_{name.upper()} is not JSON, as lists and maps in the environment must be\n"


def test_limit_beyond_decoder_is_refused_at_start(tmp_path: Path) -> None:
    config = tmp_path / "opsin.yaml"
    config.write_text(f"max_video_pixels: {2**31}\n")
    ended = opsin("serve", "--config", config)
    assert ended.returncode == 2
    assert ended.stderr == "opsin: setting max_video_pixels: Input should be less than 2147483648, not 2147483648\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["../p"], "opsin: bundles join: name: '../p': use a-z, 0-9, '.', '_' and '-', starting with a letter or digit"),
        (["p", "--version", "1/2"], "opsin: bundles join: version: '1/2': use a-z, 0-9, '.', '_' and '-', starting with a letter or digit"),
        (["p", "--rate", "0"], "opsin: bundles join: rate: Input should be greater than 0"),
        (["p", "--step", "0"], "opsin bundles join: Invalid value for '--step': "),
    ],
)
def test_a_pipeline_that_cannot_be_is_named_not_traced(arguments: list[str], sentence: str) -> None:
    ended = opsin("bundles", "join", *arguments, "--pose", "movenet", "--actions", "actions-lart", "--bundles", ROOT / "bundles")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(sentence) and ended.stderr.count("\n") == 1


def test_classify_prints_a_row_per_picture(picture: Path) -> None:
    with serve_script([Answer()]) as service:
        ended = opsin("classify", picture, "--url", service.url, "--merge", "fast", "--top-k", "2", "--model", "flags")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "cat.jpg" in ended.stdout
    assert "animals 75%  food 25%" in ended.stdout
    assert "65 → 49" in ended.stdout
    [request] = service.requests
    assert (request.path, request.body) == ("/v1/classify?model=flags&merge=fast&top_k=2", PICTURE)


def test_classify_json_is_one_line_per_file_despite_bad_one(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for file in files:
        file.write_bytes(PICTURE + file.name.encode())
    corrupt = Answer(422, {"title": "Corrupt image", "detail": "image: truncated", "status": 422})
    with serve_script([corrupt, Answer()]) as service:
        ended = opsin("classify", *files, "--json", OPSIN_URL=service.url)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.jpg", "b.jpg"]
    bad, good = sorted(lines, key=lambda line: "predictions" in line)
    assert bad["error"] == {"status": 422, "title": "Corrupt image", "detail": "image: truncated"}
    assert good["predictions"] == RESULT["results"][0]["predictions"]
    assert ended.returncode == 1
    assert ended.stderr == f"opsin: {bad['file']}: 422 Corrupt image: image: truncated\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_command_with_closed_output_or_errors_does_its_work(picture: Path, closed: str) -> None:
    with serve_script([Answer()]) as service:
        command = f'"{sys.executable}" -m opsin classify "{picture}" --url {service.url} {closed}'
        ended = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=240, check=False)
    assert (ended.returncode, ended.stderr, len(service.requests)) == (0, "", 1)


def test_classify_without_a_service_says_where_it_looked(picture: Path) -> None:
    ended = opsin("classify", picture, "--url", "http://127.0.0.1:9")
    assert ended.returncode == 1
    assert "http://127.0.0.1:9: no answer" in ended.stderr and "; is `opsin serve` running? OPSIN_URL names another" in ended.stderr


def test_missing_libraries_name_extra_of_the_command() -> None:
    for command, extra in ((["gateway"], "gateway"), (["keys", "new", "alice"], "gateway"), (["serve"], "server")):
        code = (
            f"import sys; sys.argv = ['opsin', *{command}]; sys.modules['msgspec'] = sys.modules['pydantic_settings'] = None\n"
            "from opsin.cli import main\nmain()"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert f".[{extra}]'" in ended.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["inpaint", UNREADABLE, "--mask", "center"],
        ["inpaint", "README.md", "--mask", UNREADABLE],
        ["reconstruct", UNREADABLE, "--points", "README.md"],
        ["ask", "classify", f"image={UNREADABLE}"],
    ],
)
def test_a_file_that_cannot_be_read_is_named_not_traced(command: list[str]) -> None:
    ended = opsin(*command, "--url", f"http://127.0.0.1:{free_port()}")
    assert (ended.returncode, ended.stderr) == (1, f"opsin: {UNREADABLE}: Input/output error\n")


def test_a_file_that_cannot_be_read_spoils_no_other() -> None:
    ended = opsin("zero-shot", UNREADABLE, "README.md", "--label", "a", "--url", f"http://127.0.0.1:{free_port()}")
    first, second = ended.stderr.splitlines()
    assert (ended.returncode, first) == (1, f"opsin: {UNREADABLE}: cannot be read (Input/output error)")
    assert second.startswith("opsin: README.md: ") and "no answer" in second


def test_a_clip_that_vanishes_meanwhile_takes_no_answer_with_it(picture: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mpg"

    def answer(_: Request) -> Answer:
        clip.unlink(missing_ok=True)
        return Answer()

    for arguments in ((picture, clip), (picture, clip, "--later")):
        clip.write_bytes(b"\x00\x00\x01\xba")
        with serve_script(answer) as service:
            ended = opsin("classify", *arguments, "--url", service.url)
        assert (ended.returncode, ended.stderr) == (1, f"opsin: {clip}: cannot be read (No such file or directory)\n")
        assert "cat.jpg" in ended.stdout


def test_non_utf_8_name_does_not_lose_the_answer(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"cat\xff.jpg")
    file.write_bytes(PICTURE)
    with serve_script([Answer()]) as service:
        command = [sys.executable, "-m", "opsin", "classify", file, "--json", "--url", service.url]
        usual = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as in most locales; that of C lets anything through
        visible = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=usual)
    assert (visible.returncode, visible.stderr) == (0, "")
    assert json.loads(visible.stdout)["file"] == str(file)


@pytest.mark.parametrize(
    "command",
    [
        ["ask", "classify", "image={file}", "-o", "model={text}"],
        ["jobs", "show", "{text}"],
        ["classify", "{file}", "--model", "{text}"],
        ["zero-shot", "{file}", "--label", "{text}"],
        ["inpaint", "{file}", "--mask", "center", "--preset", "{text}"],
        ["reconstruct", "{file}", "--mode", "{text}"],
        ["serve", "--host", "{text}"],
    ],
)
def test_an_argument_that_is_no_utf_8_is_one_sentence(tmp_path: Path, command: list[str]) -> None:
    file, text = tmp_path / os.fsdecode(b"cat\xff.png"), os.fsdecode(b"t\xff")
    file.write_bytes(PICTURE)
    refused = opsin(*(part.format(file=file, text=text) for part in command), OPSIN_URL="http://127.0.0.1:9", folder=tmp_path)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1), refused.stderr
    assert "t\\udcff" in refused.stderr and "UTF-8" in refused.stderr


def test_ask_sends_what_is_repeated(picture: Path) -> None:
    with serve_script([Answer()]) as service:
        visible = opsin("ask", "classify", f"image={picture}", f"image={picture}", "-o", "top_k=1", "-o", "top_k=2", "--url", service.url)
    assert visible.returncode == 0, visible.stderr
    [request] = service.requests
    assert (request.body.count(PICTURE), request.body.count(b'name="top_k"')) == (2, 2)


def test_labels_of_a_file_end_where_its_lines_end(picture: Path, tmp_path: Path) -> None:
    """And not at other separators of Unicode, which a text may hold."""
    file, labels = tmp_path / "labels.txt", ["red\u2028car", "a\x85dog", "cat\x0cnap"]
    file.write_bytes("\r\n".join(labels).encode())
    with serve_script([Answer()]) as service:
        opsin("zero-shot", picture, "--labels", file, "--url", service.url)
    assert all(label.encode() in service.requests[0].body for label in labels)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["ask", "classify", "image=README.md", "-o", "timeout=soon"], "opsin: classify: timeout: 'soon'; it must be a number of seconds"),
        (["ask", "classify", "image=README.md", "-o", "timeout=-1"], "opsin: classify: timeout: -1 s; it must be positive"),
        (["classify", "README.md", "--timeout", "nan"], "opsin: --timeout: nan seconds; it must be positive"),
    ],
)
def test_what_is_no_time_to_wait_is_named(command: list[str], sentence: str) -> None:
    refused = opsin(*command)
    assert (refused.returncode, refused.stderr) == (2, f"{sentence}\n")


@pytest.mark.parametrize("command", [["ask", "classify", "image=README.md"], ["classify", "README.md"], ["inpaint", "README.md"]])
def test_an_invalid_address_is_an_error_without_traceback(command: list[str]) -> None:
    ended = opsin(*command, "--url", "http://[::1")
    assert ended.returncode == 1
    assert ended.stderr.startswith("opsin: ") and "http://[::1: not the address of a service" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_failed_write_keeps_previous_file(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from opsin.cli.shared import output_files; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); output_files.write(Path(sys.argv[1]), bytes(5000))"
    )
    file, before = tmp_path / "filled.png", tmp_path / "before.png"
    before.write_bytes(b"yesterday")
    for named in (file, before):
        ended = subprocess.run([sys.executable, "-c", program, named], capture_output=True, text=True)
        assert ended.stderr.endswith(f"CommandError: {named}: cannot be written (File too large)\n")
    assert [each.name for each in tmp_path.iterdir()] == ["before.png"] and before.read_bytes() == b"yesterday"


def test_files_are_replaced_whole_with_mode_and_through_links(tmp_path: Path) -> None:
    file, link = tmp_path / "filled.png", tmp_path / "link.png"
    file.write_bytes(b"before")
    file.chmod(0o640)
    link.symlink_to(file)
    output_files.write(link, b"after")
    assert link.is_symlink() and file.read_bytes() == b"after" and file.stat().st_mode & 0o777 == 0o640
    piped = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pathlib import Path; from opsin.cli.shared import output_files; output_files.write(Path('/dev/stdout'), b'piped')",
        ],
        capture_output=True,
    )
    assert piped.stdout == b"piped"


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"clip")
    refused = opsin("actions", clip, "-o", tmp_path / "out.mp4", "--json", tmp_path / "out.mp4")
    assert (refused.returncode, "used for two outputs" in refused.stderr) == (2, True)


@pytest.mark.parametrize("name", ["self", "task", "parts"])
def test_an_option_that_no_task_can_have_is_named(name: str) -> None:
    refused = opsin("ask", "classify", "image=README.md", "-o", f"{name}=3")
    assert (refused.returncode, refused.stderr) == (2, f"opsin: --option {name}: an option cannot have this name\n")


def test_the_list_names_a_pipeline_whose_members_are_missing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bundles/shapes", tmp_path / "shapes")
    listed = opsin("bundles", "list", "--bundles", tmp_path)
    assert (listed.returncode, "mcc_photograph" in listed.stdout) == (1, True)
    assert f"members.shape: reconstruct@2.0.0 is not at {tmp_path}/reconstruct/2.0.0 (No such file or directory)" in listed.stderr


def test_the_list_warns_of_folders_that_are_no_bundle(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "tiny/1", tmp_path / "flat")
    (tmp_path / "nojson/1").mkdir(parents=True)
    (tmp_path / "nojson/1/model.onnx").touch()
    listed = opsin("bundles", "list", "--bundles", tmp_path)
    assert (listed.returncode, listed.stdout) == (0, f"{tmp_path}: no bundles\n")
    assert listed.stderr.splitlines() == [
        "flat: bundle.json lies one level too high; NAME/VERSION/ is needed",
        "nojson/1: has no bundle.json; opsin import makes one",
    ]


def test_bundles_are_listed_with_what_was_measured(bundles: Path) -> None:
    header, row = opsin("bundles", "list", "--bundles", bundles).stdout.splitlines()
    assert header.split() == ["Name", "Version", "Task", "Architecture", "Size", "Default", "rung", "Accuracy"]
    assert row.split()[:4] + row.split()[-3:] == ["tiny", "1", "classify", "null", "fast", "87.5%", "top-1"]


def test_list_shows_measured_rungs_if_default_was_not(bundles: Path, tmp_path: Path) -> None:
    spec = read(bundles / "tiny/1").spec
    ladder = spec.ladder
    for name, rungs, quality in (
        ("rungs", ladder, {"drums": {"top1": 0.5}}),
        ("whole", ladder, {"accuracy": 0.91}),
        ("other", [], {"drums": {"top1": 0.5}}),
        ("plain", [], {}),
    ):
        made = spec.model_copy(update={"name": name, "default_rung": None, "ladder": rungs, "quality": quality})
        write(tmp_path, made, bundles / "weights.safetensors")
    _, *rows = opsin("bundles", "list", "--bundles", tmp_path).stdout.splitlines()
    listed = {row.split()[0]: row.split("  off  ")[1].strip() for row in rows}
    assert listed == {"rungs": "87.5% top-1 at fast", "whole": "91.0%", "other": "other measures", "plain": "not measured"}


def test_a_bundle_is_shown_whole_and_as_its_own_json(bundles: Path) -> None:
    visible = opsin("bundles", "show", "tiny@1", OPSIN_BUNDLES=str(bundles)).stdout
    assert all(fact in visible for fact in ("Two animals", "CC0-1.0", "cats, dogs", "fast (default)", "1.50×", "not measured"))
    assert opsin("bundles", "show", "tiny", "--json", "--bundles", bundles).stdout == (bundles / "tiny/1/bundle.json").read_text()


def test_missing_bundle_is_misuse_and_others_are_named(bundles: Path) -> None:
    ended = opsin("bundles", "show", "huge", "--bundles", bundles)
    assert (ended.returncode, ended.stderr) == (2, f"opsin: no bundle 'huge' in {bundles}; there are tiny@1\n")


def test_verify_counts_labels_and_classes(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "tiny", tmp_path / "tiny")
    file = tmp_path / "tiny/1/bundle.json"
    spec = json.loads(file.read_text())
    file.write_text(json.dumps(spec | {"labels": spec["labels"][:-1]}))
    ended = opsin("bundles", "verify", "--bundles", tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"opsin: {tmp_path}/tiny/1: 1 label for a model of 2 classes\n"


def test_verify_passes_whole_bundles_and_names_the_damaged_file(bundles: Path, tmp_path: Path) -> None:
    full = opsin("bundles", "verify", "--bundles", bundles)
    assert (full.returncode, full.stderr) == (0, "")
    assert full.stdout.split()[0] == "tiny@1"
    assert full.stdout.split()[-1] == "OK"

    spec, weights = ((bundles / "tiny/1" / name).read_bytes() for name in ("bundle.json", "model.safetensors"))
    for name, content, text in (
        ("whole", weights, spec),
        ("short", weights[:-1], spec),
        ("flipped", weights[:-1] + b"\x01", spec),
        ("torn", weights, spec[:50]),
    ):
        folder = tmp_path / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(content)
        (folder / "bundle.json").write_bytes(text)
    ended = opsin("bundles", "verify", "--bundles", tmp_path)
    assert ended.returncode == 1
    assert ended.stdout.count("OK") == 1
    complaints = {line.split(":")[1].strip().removeprefix(f"{tmp_path}/"): line for line in ended.stderr.splitlines()}
    assert set(complaints) == {"short/1/model.safetensors", "flipped/1/model.safetensors", "torn/1/bundle.json"}
    assert "truncated" in complaints["short/1/model.safetensors"]
    assert "SHA-256" in complaints["flipped/1/model.safetensors"]


def test_output_may_be_cut_short_by_its_reader(bundles: Path) -> None:
    command = f"'{sys.executable}' -m opsin bundles show tiny --json --bundles '{bundles}' | true"
    assert subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=240, check=False).stderr == ""


def test_a_terminal_obeys_no_label_of_another_server(tmp_path: Path) -> None:
    hostile, visible = "\x1b]0;t\x07 [bold]\x9b2J", "\\u001b]0;t\\u0007 [bold]\\u009b2J"
    prediction = {"label": hostile, "index": 0, "score": 0.75}
    answer = Answer(body={**RESULT, "results": [{**RESULT["results"][0], "predictions": [prediction]}]})
    problem = Answer(status=422, body={"title": "no", "detail": hostile, "status": 422, "type": "about:blank"})
    image = tmp_path / "a.png"
    image.write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    commands = (("classify", image), ("classify", image, "--json"), ("ask", "classify", f"image={image}"), ("classify", image))
    for command, reply in zip(commands, (answer, answer, answer, problem), strict=True):
        with serve_script([reply]) as server:
            ended = opsin(*command, "--url", server.url)
        assert visible in ended.stdout + ended.stderr and not {"\x1b", "\x07", "\x9b"} & set(ended.stdout + ended.stderr), ended
