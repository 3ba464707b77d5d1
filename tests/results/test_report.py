"""The report in a real browser: it needs no other file, and a click on a header sorts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from results.contents import all_grids
from results.frame import published
from results.pages import ROOT, report
from results.record import Record

from .conftest import found_in

PAPERS = published(ROOT / "results" / "published.csv")


def test_the_page_holds_everything_itself(study: list[Record], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "some_detections.jpg"), cv2.UMat(8, 8, cv2.CV_8UC3).get())
    text = report(all_grids(found_in(study), PAPERS), {}, tmp_path / "pictures")
    assert "some detections" in text
    assert not re.search(r"(src|href)=.?(http|/|\w+\.)|url\(|@import", text)


@pytest.fixture
def browser() -> Iterator[Any]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromium-driver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1800"):
        options.add_argument(argument)
    options.binary_location = str(shutil.which("chromium"))
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=str(shutil.which("chromedriver"))))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.mark.slow
def test_a_click_on_a_header_sorts_and_missing_cells_stay_below(
    study: list[Record], tmp_path: Path, browser: Any
) -> None:
    (tmp_path / "index.html").write_text(report(all_grids(found_in(study), PAPERS), {}, tmp_path / "pictures"))
    browser.get(f"file://{tmp_path}/index.html")

    def column(index: int) -> list[str]:
        cells = browser.find_elements("css selector", f"#classification td:nth-child({index})")
        return [cell.text for cell in cells]

    def click(index: int) -> None:
        browser.find_element("css selector", f"#classification th:nth-child({index})").click()

    values = ["40.0", "50.0", "60.0", "70.0"]
    assert [text[:4] for text in column(2)] == values
    click(2)
    assert [text[:4] for text in column(2)] == values[::-1]
    click(2)
    assert [text[:4] for text in column(2)] == values
    click(2)  # the third click
    assert [text[:4] for text in column(2)] == values
    for _ in range(2):
        click(3)
        assert column(3)[-1] == "–"
        picture = tmp_path / "page.png"
    assert browser.save_screenshot(str(picture))
    assert cv2.imread(str(picture)).std() > 5


@pytest.mark.slow
def test_the_report_of_the_repository_opens_without_an_error(browser: Any) -> None:
    browser.get(f"file://{ROOT}/results/tables/index.html")
    assert browser.find_element("tag name", "h1").text == "Results"
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert sizes
    assert all(sizes)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
