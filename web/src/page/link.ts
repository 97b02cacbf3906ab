/** The link that a device's owner was given: a gateway, and in the fragment, which no browser sends, a token. */

const TOKEN = /hb1\.[0-9a-f]{8}\.[A-Za-z0-9_-]{43}/;
const KEPT = "halfback.token"; // for as long as the tab is there, so that it may be loaded anew

/** Where to connect, and as whom. */
export interface Link {
  /** The page's own: a page may connect to no other. */
  readonly url: string;
  readonly token: string;
}

/** Takes the token out of the address, where others would see it, or finds the one of before; null where there is none. */
export function linkOfAddress(): Link | null {
  const found = TOKEN.exec(location.hash)?.[0];
  if (location.hash) history.replaceState(null, "", location.pathname);
  if (found !== undefined) sessionStorage.setItem(KEPT, found);
  const token = found ?? sessionStorage.getItem(KEPT);
  return token === null ? null : { url: location.origin, token };
}

/**
 * What somebody typed or pasted: a token, or a link that ends in one.
 *
 * @returns the link, or a sentence that says what is wrong.
 */
export function linkOfText(text: string): Link | string {
  const said = text.trim();
  const token = TOKEN.exec(said)?.[0];
  if (token === undefined) return "This is no token: one begins with hb1. and has 56 characters. Paste the whole link.";
  const before = said.slice(0, said.indexOf(token)).replace(/#$/, "");
  if (before && !sameOrigin(before)) {
    return `This link is of another gateway. Open it in a tab of its own: this page connects to ${location.host} alone.`;
  }
  sessionStorage.setItem(KEPT, token);
  return { url: location.origin, token };
}

function sameOrigin(address: string): boolean {
  try {
    return new URL(address).origin === location.origin;
  } catch {
    return false;
  }
}

/** Forgets the token. */
export function unlink(): void {
  sessionStorage.removeItem(KEPT);
}

/** What of a token may be shown: its public part. */
export function idOf(token: string): string {
  return token.split(".")[1] ?? "";
}
