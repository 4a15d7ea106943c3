"""compare.py in another folder, with and without what README.md says that it needs."""

import shutil

from conftest import ROOT, assert_one_line_error
from programs import as_python, run


def test_compare_needs_what_the_readme_lists_and_says_so(tmp_path):
    assert (
        "`compare.py` needs `data.py`, `program.py` and the folder `page/`"
        in (ROOT / "README.md").read_text()
    )
    (tmp_path / "mine.csv").write_text("id,guess,truth\n0,a,a\n1,b,a\n")
    shutil.copy(ROOT / "compare.py", tmp_path)
    needed = "compare.py needs data.py, program.py, the folder page"
    assert_one_line_error(run(as_python, "compare.py", "mine.csv", cwd=tmp_path), "data is missing", needed)
    for name in ("data.py", "program.py"):
        shutil.copy(ROOT / name, tmp_path)
    assert_one_line_error(run(as_python, "compare.py", "mine.csv", cwd=tmp_path), "page is missing", needed)
    shutil.copytree(ROOT / "page", tmp_path / "page")
    result = run(as_python, "compare.py", "mine.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "a taken for b (1)" in result.stdout and (tmp_path / "compare.html").exists()
