// What the page says beside its views: errors with a way to go on, and lines for screen readers.

import { ConnectionLost, Refused } from "./api.js";
import { element, replaceChildren } from "./elements.js";

/** Says something to screen readers, once. */
export function announce(text) {
  const line = document.getElementById("announcements");
  line.textContent = "";
  // A text that is the same as before would not be read otherwise.
  setTimeout(() => {
    line.textContent = text;
  }, 50);
}

/** What happened and what to do, as an element. */
export function describeError(error, session) {
  const lines = [element("p", {}, error.message)];
  if (error instanceof Refused) {
    if (error.code === "CrossSite" && session?.publicAddress) {
      const link = element("a", { href: session.publicAddress }, session.publicAddress);
      lines.push(element("p", {}, "Changes are possible at the public address of this gateway alone: ", link));
    } else if (error.hint) {
      lines.push(element("p", {}, error.hint));
    }
    lines.push(element("p", { class: "reason" }, [error.code, error.request].filter(Boolean).join(", request ")));
  } else if (!(error instanceof ConnectionLost)) {
    console.error(error);
  }
  return element("div", { class: "notice error", role: "alert" }, lines);
}

/** Does something for a part of the page, and shows there what went wrong, with a way to try again. */
export async function attempt(session, place, signal, action) {
  try {
    await action();
  } catch (error) {
    if (signal.aborted) return;
    const repeat = () => attempt(session, place, signal, action);
    const again = element("button", { type: "button", on: { click: repeat } }, "Try again");
    replaceChildren(place, describeError(error, session), again);
  }
}
