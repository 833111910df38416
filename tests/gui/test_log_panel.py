"""The log panel of ace_gui.py on a real Tk."""

from __future__ import annotations

import ace_gui


def test_the_log_stays_where_the_user_scrolled(make_window):
    window = make_window()
    log = window.app.window.log
    log.write([f"line {n}" for n in range(500)])
    assert log.text.yview()[1] == 1.0
    log.text.yview_moveto(0.2)
    window.pump()
    top = log.text.index("@0,0")
    log.write([f"more {n}" for n in range(500)])
    window.pump()
    assert log.text.index("@0,0") == top
    log.text.see("end")
    window.pump()
    log.write(["last"])
    assert log.text.yview()[1] == 1.0


def test_the_log_overwrites_progress_and_keeps_its_length(make_window):
    log = make_window().app.window.log
    log.clear()
    for n in range(300):
        log.write([], f"{n}%|bar")
    assert log.content() == "299%|bar"
    log.write(["done"], "next")
    assert log.content() == "done\nnext"
    for start in range(0, 20_000, 500):
        log.write([f"line {n}" for n in range(start, start + 500)], "bar")
    assert ace_gui.MAX_LOG_LINES <= log.content().count("\n") <= ace_gui.MAX_LOG_LINES + ace_gui.TRIM_SLACK
    assert log.content().endswith("line 19999\nbar")
    log.write(["RuntimeError: broken"], skipped=7)
    assert "7 lines left out here" in log.content()
    assert log.text.tag_ranges("bad") and log.text.tag_ranges("muted")


def test_the_log_can_be_read_and_copied_but_not_edited(make_window):
    log = make_window().app.window.log
    log.write(["a line"])
    before = log.content()
    log.text.focus_force()
    for key in ("x", "BackSpace", "Return", "Delete"):
        log.text.event_generate("<Key>", keysym=key)
    assert log.content() == before


def test_scrolling_up_by_a_notch_stays_in_a_long_log(make_window):
    window = make_window()
    log = window.app.window.log
    log.write([f"line {n}" for n in range(5500)])
    window.pump()
    log.text.yview_scroll(-3, "units")
    window.pump()
    top = log.text.index("@0,0")
    log.write(["more"])
    window.pump()
    assert log.text.index("@0,0") == top
    log.text.see("end")
    window.pump()
    log.write(["and more"])
    window.pump()
    assert log.text.dlineinfo("end-1c") is not None


def test_a_banner_does_not_hide_the_end_of_the_log(make_window):
    window = make_window()
    log = window.app.window.log
    log.write([f"line {n}" for n in range(200)])
    window.pump()
    window.app.session.tell(ace_gui.Outcome("bad", "one\ntwo\nthree"))
    window.pump()
    assert log.text.dlineinfo("end-1c") is not None
    log.text.yview_moveto(0.5)
    window.pump()
    top = log.text.index("@0,0")
    window.app.window.banner.hide()
    window.pump()
    assert log.text.index("@0,0") == top
