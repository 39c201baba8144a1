"""What goes wrong, and how the page lives with it: journeys in a browser, against a fake gateway."""

import pytest
from looking import browser, fake, live, needs_chromium, page, server, until
from msgspec import structs

from forcing.serve import wire

__all__ = ["browser", "page", "server"]
pytestmark = needs_chromium


def test_the_session_survives_its_socket(page, server):
    live(page, server)
    frame = page.evaluate("window.forcing.shown.frame")
    server.hang_up()
    until(page, "f.state === 'reconnecting'")
    assert page.get_by_test_id("veil-title").inner_text() == "The connection was lost"
    until(page, f"f.state === 'live' && f.shown.frame > {frame} && f.counts.sockets === 2")
    assert len(server.said(wire.Begin)) == 1
    assert len(server.said(wire.Hello)) == 2


def test_a_session_that_is_gone_can_be_begun_again(page, server):
    live(page, server)
    server.sessions.clear()
    server.sessions["other"] = fake.Viewing(99)
    page.get_by_test_id("leave").dblclick()
    until(page, "f.state === 'closed'")
    page.get_by_test_id("veil-do").click()
    until(page, "f.state === 'live' && f.shown?.generation === 1")


def test_states_of_the_gateway_are_said(page, server):
    live(page, server)
    for state, words in (("recovering", "Recovering"), ("draining", "Server is closing"), ("closed", "Closed")):
        server.tell(wire.Stands(state, 1, "because"))
        until(page, f"f.state === '{state}' && f.message.toLowerCase().startsWith('because')")
        assert page.get_by_test_id("status").inner_text() == words
    assert page.get_by_test_id("veil-text").inner_text() == "Because."


def test_a_server_that_was_started_again_has_a_new_session(page, server):
    live(page, server)
    server.hang_up()
    server.sessions.clear()  # it knows nothing of it
    server.sessions["other"] = fake.Viewing(99)
    page.get_by_test_id("notes").get_by_text("The server was started again").wait_for()
    until(page, "f.state === 'live' && f.shown?.mark === 2")


def test_loading_and_what_cannot_be_loaded_are_said(page, server):
    server.queue, server.loading = 2, True
    page.goto(server.url)
    page.get_by_test_id("veil-title").get_by_text("Loading the world").wait_for()
    until(page, "f.state === 'live'")
    server.unfit = "no engine works: the world is damaged"
    page.get_by_test_id("leave").dblclick()
    page.get_by_test_id("veil-do").click()
    page.get_by_test_id("veil-title").get_by_text("The world could not be started").wait_for()
    assert "No engine works: the world is damaged. Looking again" in page.get_by_test_id("veil-text").inner_text()


def test_a_hint_stays_until_a_key_is_pressed(page, server):
    server.world = structs.replace(fake.ROOMS, hint="You are the red triangle.", first="four rooms")
    live(page, server, "seed=4")
    assert page.evaluate("window.forcing.prompt") == "four rooms"
    page.get_by_test_id("pill").get_by_text("You are the red triangle.").wait_for()
    page.keyboard.press("ArrowUp")
    page.get_by_test_id("pill").wait_for(state="hidden")


def test_a_link_to_this_world_is_in_the_address(page, server):
    live(page, server, "seed=4")
    page.get_by_test_id("seed").fill("77")
    page.get_by_test_id("seed").press("Enter")
    until(page, "f.generation === 2")
    assert "seed=77" in page.url and "prompt=multi+room" in page.url and "ticket" not in page.url
    page.get_by_test_id("seed").fill("1e5")
    page.get_by_test_id("seed").press("Enter")
    page.get_by_test_id("notes").get_by_text("A seed is a whole number").wait_for()
    page.get_by_test_id("stage").click()
    assert page.get_by_test_id("seed").input_value() == "77"
    page.reload()
    until(page, "f.state === 'live' && f.shown !== null")
    assert server.said(wire.Begin)[-1].seed == 77


def test_errors_are_said_and_do_not_end_it(page, server):
    live(page, server)
    server.tell(wire.Wrong("not_kept", "Frame 3 is not kept any more."))
    page.get_by_test_id("notes").get_by_text("not kept").wait_for()
    frame = page.evaluate("window.forcing.shown.frame")
    until(page, f"f.state === 'live' && f.shown.frame > {frame + 2}")


def test_a_starved_picture_is_held_and_it_is_said(page, server):
    live(page, server)
    server.deaf = wire.Grant
    until(page, "f.starved")
    assert "Waiting" in page.get_by_test_id("pill").inner_text()


def test_the_queue(page):
    with fake.Fake(queue=3) as server:
        page.goto(server.url)
        until(page, "f.state === 'queued'")
        assert page.get_by_test_id("veil-title").inner_text() == "Number 3 in the queue"
        until(page, "f.state === 'live'")


def test_a_full_house_is_asked_again(page):
    with fake.Fake(full=1) as server:
        page.goto(server.url)
        until(page, "f.state === 'full'")
        page.get_by_test_id("veil-do").click()
        until(page, "f.state === 'live'")


def test_a_token_is_asked_for(page, server):
    server.token = "secret"
    page.goto(server.url)
    until(page, "f.state === 'token'")
    page.get_by_test_id("token").fill("secret")
    page.get_by_test_id("token-send").click()
    until(page, "f.state === 'live'")


SLOW = """
const decode = window.createImageBitmap;
window.createImageBitmap = async (...told) => {
  await new Promise((done) => setTimeout(done, 150));
  return decode(...told);
};
"""


def test_a_picture_that_is_decoded_too_late_stops_none_after_it(page, server):
    page.add_init_script(SLOW)
    live(page, server)
    server.queue = 1  # so that there is a while without a session
    received = page.evaluate("window.forcing.counts.received")
    until(page, f"f.counts.received > {received}")
    page.get_by_test_id("leave").dblclick()
    page.get_by_test_id("veil-do").click()
    until(page, "f.state === 'queued'")
    until(page, "f.state === 'live' && f.shown?.frame > 3")
    assert page.evaluate("window.forcing.shown.mark") == 2


def test_a_prompt_that_was_asked_for_is_applied_on_another_socket(page, server):
    live(page, server)
    server.deaf = wire.Grant
    until(page, "f.starved")
    page.get_by_test_id("prompt-2").click()
    until(page, "f.asked === 'lava crossing'")
    page.wait_for_timeout(100)  # it was accepted
    server.hang_up()
    until(page, "f.state === 'reconnecting'")
    assert page.evaluate("[window.forcing.prompt, window.forcing.asked]") == ["multi room", "lava crossing"]
    server.deaf = ()
    until(page, "f.state === 'live' && f.prompt === 'lava crossing' && f.asked === null")
    assert page.get_by_test_id("prompt-2").get_attribute("aria-pressed") == "true"
    assert len(server.said(wire.Ask)) == 1


def test_a_prompt_that_was_not_heard_is_asked_for_again(page, server):
    live(page, server)
    page.get_by_test_id("switch-cut").click()
    server.deaf = wire.Ask
    page.get_by_test_id("prompt-1").click()
    page.get_by_test_id("prompt-2").click()
    page.get_by_test_id("switch-blend").click()
    page.wait_for_timeout(100)
    server.hang_up()
    until(page, "f.state === 'reconnecting'")
    server.deaf = ()
    until(page, "f.state === 'live' && f.prompt === 'lava crossing' && f.asked === null")
    asked = server.said(wire.Ask)
    assert [(each.text, each.switch) for each in asked[2:]] == [("four rooms", "cut"), ("lava crossing", "cut")]
    assert len({each.id for each in asked}) == 4


def test_an_answer_that_was_lost_is_not_waited_for_for_ever(page, server):
    live(page, server)
    server.deaf = wire.Ask
    page.get_by_test_id("prompt-1").click()
    page.get_by_test_id("prompt-2").click()
    page.wait_for_timeout(100)
    server.tell(wire.Applied(server.said(wire.Ask)[1].id, 5, 1))
    until(page, "f.prompt === 'lava crossing' && f.asked === null")


@pytest.mark.parametrize("lost", ["socket", "engine"])
def test_a_film_that_never_comes_does_not_hold_its_button(page, server, lost):
    live(page, server)
    server.deaf = wire.Export
    page.get_by_test_id("film").click()
    assert page.get_by_test_id("film").inner_text() == "Saving…"
    assert page.get_by_test_id("film").is_disabled() and page.get_by_test_id("session").is_disabled()
    page.wait_for_timeout(100)
    if lost == "socket":
        server.hang_up()
        until(page, "f.state === 'reconnecting'")
        until(page, "f.state === 'live'")
    else:
        server.tell(wire.Stands("recovering", 1))
        until(page, "f.state === 'recovering'")
    assert page.get_by_test_id("film").inner_text() == "MP4 film"
    assert page.get_by_test_id("film").is_enabled() and page.get_by_test_id("session").is_enabled()
    (asked,) = server.said(wire.Export)
    with page.expect_download() as saved:  # if it comes all the same
        server.tell(wire.Exported(asked.id, "/api/exports/film.file"))
    assert saved.value.suggested_filename == "forcing-multi-room-3.mp4"


def test_an_environment_that_is_gone_is_not_compared_with(page, server):
    live(page, server, "reality=true")
    until(page, "f.shown.frame > 4")
    assert page.get_by_test_id("reality").is_visible()
    assert page.get_by_test_id("compare").get_attribute("aria-pressed") == "true"
    assert page.get_by_test_id("notes").inner_text() == ""
    page.get_by_test_id("back").click()  # as after the loss of an engine: it comes without
    until(page, "f.shown.generation === 2")
    assert page.get_by_test_id("compare").get_attribute("aria-pressed") == "false"
    assert page.get_by_test_id("reality").is_hidden()
    assert "environment could not come along" in page.get_by_test_id("notes").inner_text()
    page.get_by_test_id("reset").click()
    until(page, "f.shown.generation === 3")
    assert not server.said(wire.Begin)[-1].reality


@pytest.mark.parametrize("how", ["prompt=a+castle", "steps=9", "prompt=a+castle&steps=9", "steps=99"])
def test_a_link_that_asks_for_too_much_begins_with_less(page, server, how):
    live(page, server, f"seed=3&{how}")
    said = server.said(wire.Begin)  # but for what could not be read
    assert said[-1] == wire.Begin("multi room", 3)
    assert len(said) == {"prompt=a+castle&steps=9": 3, "steps=99": 1}.get(how, 2)
    assert page.get_by_test_id("steps-null").get_attribute("aria-pressed") == "true"
    assert page.get_by_test_id("prompt-0").get_attribute("aria-pressed") == "true"
    assert "could not begin as it was asked" in page.get_by_test_id("notes").inner_text()


def test_an_image_that_is_not_kept_any_more_is_begun_without(page, server):
    live(page, server)
    image = {"name": "a.png", "mimeType": "image/png", "buffer": fake.encoded(fake.numbers(1))}
    page.get_by_test_id("file").set_input_files(image)
    until(page, "f.generation === 2")
    page.get_by_test_id("leave").dblclick()
    server.images.clear()
    page.get_by_test_id("veil-do").click()
    until(page, "f.state === 'live' && f.shown?.generation === 1")
    assert [each.image for each in server.said(wire.Begin)[-2:]] == ["image-1", None]
    assert page.get_by_test_id("thumb").is_hidden()


def test_what_never_begins_is_not_begun_for_ever(page):
    class Strict(fake.Fake):
        def _wrong(self, said):
            return wire.Wrong("bad_message", "steps must be even")

    with Strict() as server:
        page.goto(server.url)
        until(page, "f.state === 'error'")
        page.wait_for_timeout(300)
        assert len(server.said(wire.Begin)) == 2
        assert page.get_by_test_id("veil-text").inner_text() == "steps must be even"


def test_a_server_that_closes_says_when(page, server):
    live(page, server)
    server.tell(wire.Stands("draining", 1, "the gateway stops in 10 s"))
    until(page, "f.state === 'draining'")
    pill, status = page.get_by_test_id("pill"), page.get_by_test_id("status")
    assert (pill.inner_text(), status.inner_text()) == ("The gateway stops in 10 s", "Server is closing")
    pill.get_by_text("stops in 8 s").wait_for()
    assert "about to close" in page.get_by_test_id("notes").inner_text()
    server.tell(wire.Stands("live", 1))  # which does not mean that it stays
    until(page, "f.state === 'live'")
    assert status.inner_text() == "Server is closing" and "stops in" in pill.inner_text()
