"""The page in a real browser: Debian's Chromium, driven by its own chromedriver. Skipped, saying so, where one is missing."""

import base64
import shutil
from itertools import pairwise

import numpy as np
import pytest

from nava_lab.media.write import write_mp4
from nava_lab.report.compare import compare
from nava_lab.report.page import write_page
from tests.unit.report.made import make_runs, make_study

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install selenium")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # any that .ci/run takes for one
CHROMIUM, DRIVER = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing: apt-get install chromium chromium-driver"
)

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--force-prefers-reduced-motion",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-dev-shm-usage",
)
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    runs = make_runs(root, {"dual_tower": 0.80, "unified": 0.70, "align_then_fuse": 0.70}, noise=0.01)
    frames = np.random.default_rng(0).integers(0, 255, (13, 16, 16, 3), dtype=np.uint8)
    sound = np.sin(np.arange(16_000) / 20).astype(np.float32) * 0.1
    film = write_mp4(root / "film.mp4", frames=frames, frame_rate=12.5, sound=sound, sample_rate=16_000)
    for run in runs[:3]:  # of seed 0
        (run / "previews").mkdir()
        for clip in range(3):
            shutil.copy(film, run / "previews" / f"clip_{clip}.mp4")
            (run / "previews" / f"clip_{clip}.png").write_bytes(PIXEL)
    return write_page(compare([root]), tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    sized(browser, 1280)
    browser.get(page.as_uri())
    return browser


def sized(browser, width):
    measure = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", measure)


def wait(browser, condition, seconds=8):
    """Whether a condition of the page comes true in time."""
    script = f"const done = arguments[0], start = performance.now(); const look = () => ({condition}) ? done(true) : performance.now() - start > {seconds * 1000} ? done(false) : setTimeout(look, 30); look();"
    return browser.execute_async_script(script)


def column(browser, table, number):
    return browser.execute_script(
        f"return [...document.querySelectorAll('#{table} tbody tr')].map(row => row.cells[{number}].textContent.trim())"
    )


def test_the_page_asks_nothing_of_the_network_and_complains_of_nothing(opened):
    opened.get_log("performance")
    opened.refresh()
    requested = [entry["message"] for entry in opened.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]]
    assert requested
    assert not [line for line in requested if '"url":"http' in line]
    assert opened.get_log("browser") == []
    text = opened.find_element("css selector", "body").text
    assert "dual_tower is ahead of every other in sync_auc." in text
    assert "8 paired seeds, sign-flip p = 0.023 after Holm over 3 contrasts" in text
    assert "nava train -m variant=dual_tower seed=0,1,2,3,4,5,6,7" in text


def test_tables_sort_by_mouse_and_by_keyboard(opened):
    assert column(opened, "scores", 0)[0] == "dual_tower"
    flops = next(head for head in opened.find_elements("css selector", "#scores th") if head.text.startswith("FLOPs"))
    flops.find_element("tag name", "button").click()
    assert column(opened, "scores", 0) == ["dual_tower", "align_then_fuse", "unified"]
    assert flops.get_attribute("aria-sort") == "ascending"
    flops.find_element("tag name", "button").send_keys("\ue007")  # Enter
    assert column(opened, "scores", 0) == ["unified", "align_then_fuse", "dual_tower"]
    assert flops.get_attribute("aria-sort") == "descending"
    opened.execute_script("document.querySelector('#runs details').open = true")
    seed = next(head for head in opened.find_elements("css selector", "#every th") if head.text == "seed")
    seed.find_element("tag name", "button").click()
    assert [int(text) for text in column(opened, "every", 1)] == [seed for seed in range(8) for _ in range(3)]


def test_clips_play_as_one_with_one_sound(opened):
    seen = "[...document.querySelectorAll('.tile:not([hidden]) video')]"
    assert wait(opened, f"{seen}.length === 3 && {seen}.every(video => video.readyState >= 3)")
    play = opened.find_element("css selector", ".play")
    play.send_keys(" ")  # by keyboard
    assert play.text == "Pause"
    assert wait(opened, f"{seen}.every(video => !video.paused && video.currentTime > 0.2)")
    assert wait(
        opened, f"Math.max(...{seen}.map(video => video.currentTime)) - Math.min(...{seen}.map(video => video.currentTime)) < 0.1"
    )
    assert opened.execute_script(f"return {seen}.filter(video => !video.muted).length") == 1
    assert wait(
        opened, f"window.before === undefined ? (window.before = 1, false) : {seen}[0].currentTime < 0.15"
    )  # it begins again
    opened.find_elements("css selector", ".tile:not([hidden]) .listen")[1].click()
    heard = opened.execute_script(f"return {seen}.map(video => !video.muted)")
    assert heard == [False, True, False]
    assert (
        opened.execute_script("return document.querySelector('.sound').value")
        == opened.find_elements("css selector", ".tile.heard h3 span")[0].text
    )
    play.click()
    assert play.text == "Play all"
    assert opened.execute_script(f"return {seen}.every(video => video.paused)")
    place = opened.find_element("css selector", ".player input")
    opened.execute_script("arguments[0].value = 0.5; arguments[0].dispatchEvent(new Event('input'))", place)
    assert wait(opened, f"{seen}.every(video => Math.abs(video.currentTime - video.duration / 2) < 0.05)")
    opened.execute_script(
        "const clip = document.querySelector('.clip'); clip.value = '2'; clip.dispatchEvent(new Event('change'))"
    )
    assert (
        opened.execute_script("return [...document.querySelectorAll('.tile:not([hidden])')].map(tile => tile.dataset.clip)")
        == ["2"] * 3
    )
    assert opened.get_log("browser") == []


def test_a_phone_scrolls_tables_and_never_the_page(opened):
    sized(opened, 390)
    opened.refresh()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
    small = opened.execute_script(
        "return [...document.querySelectorAll('.player button, .player select, .player input')].filter(part => part.offsetParent && part.offsetHeight < 40).length"
    )
    assert small == 0
    assert opened.execute_script("return getComputedStyle(document.body).fontSize") == "16px"


def test_names_for_readers_aloud(opened):
    """Every control, picture and figure has an accessible name, headings come in order, and scrolled regions take the focus."""
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    for node in nodes:
        role = node.get("role", {}).get("value")
        if not node.get("ignored") and role in (
            "button",
            "combobox",
            "slider",
            "image",
            "img",
            "link",
            "table",
            "region",
            "Video",
        ):
            assert node.get("name", {}).get("value") or role == "table", node
    levels = [int(part.tag_name[1]) for part in opened.find_elements("css selector", "h1, h2, h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    scrolled = opened.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(part => [part.tabIndex, part.getAttribute('role'), part.getAttribute('aria-label')])"
    )
    assert len(scrolled) == 5
    assert all((place, role) == (0, "region") and name for place, role, name in scrolled)
    assert opened.execute_script("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(opened, scheme):
    """WCAG AA: 4.5 to 1 for everything that is read."""
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    low = opened.execute_script("""
      const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(part => { const c = part / 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
      const ground = part => { for (; part; part = part.parentElement) { const c = getComputedStyle(part).backgroundColor; if (c !== "rgba(0, 0, 0, 0)") return c; } return "rgb(255, 255, 255)"; };
      return [...document.querySelectorAll("p, td, th, dt, dd, h1, h2, h3, li, a, summary, small, .chip, figcaption, button, pre, mark, .outcome")].filter(part => part.offsetParent && part.textContent.trim()).map(part => {
        const a = light(getComputedStyle(part).color), b = light(ground(part));
        return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), part.tagName, part.className, part.textContent.slice(0, 40)];
      }).filter(part => part[0] < 4.5);
    """)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert low == []


def test_paper_shows_every_clip_and_no_buttons(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = opened.execute_script(
        "return [...document.querySelectorAll('.tile')].filter(tile => getComputedStyle(tile).display !== 'none').length"
    )
    buttons = opened.execute_script(
        "return [...document.querySelectorAll('.player, .listen, nav, video')].filter(part => getComputedStyle(part).display !== 'none').length"
    )
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert (shown, buttons) == (9, 0)
    printed = opened.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def test_a_studys_page(browser, tmp_path):
    folder = make_study(tmp_path, failed={("align_fraction=0.5 [flops]", 3)})
    browser.get(write_page(compare([folder]), tmp_path / "page").as_uri())
    text = browser.find_element("css selector", "body").text
    assert "How much of the depth should align?" in text
    assert "79 of 80 confirmation runs are finished (1 failed)." in text
    assert "PROVISIONAL" in text
    failed, alone = (part.text for part in browser.find_elements("css selector", "ul.why li"))
    assert "1 of 8 confirmation seeds failed (seed 3: the loss is nan)" in failed
    assert "at equal FLOPs it is not (7 seeds, and a verdict needs 8)" in alone
    assert "nava study depth_ratio.yaml" in text
    assert browser.find_elements("id", "figure-against_variant_align_fraction")
    assert browser.find_elements("id", "figure-importance")
    assert not browser.find_elements("css selector", ".player")  # these runs kept no clips
    assert browser.get_log("browser") == []
