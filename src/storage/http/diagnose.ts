import type { Diagnosis } from "../backend.ts";

const CLOCK_WARNING_MS = 60_000;

/** This machine's clock against the Date header of an answer that came when it was `ownMs` here. Further off than `failureMs`: refused. */
export function checkClock(
  headers: Headers,
  { ownMs, failureMs }: { readonly ownMs: number; readonly failureMs: number },
): Diagnosis {
  const check = "clock";
  const serverMs = Date.parse(headers.get("date") ?? "");
  if (Number.isNaN(serverMs)) return { check, level: "pass", message: "the server does not tell the time" };
  // The header has whole seconds.
  const seconds = Math.round((ownMs - serverMs - 500) / 1000);
  const offMs = Math.abs(seconds) * 1000;
  if (offMs < CLOCK_WARNING_MS)
    return { check, level: "pass", message: "this machine's clock agrees with the server's" };
  const message = `this machine's clock is ${Math.abs(seconds)} s ${seconds < 0 ? "behind" : "ahead of"} the server's`;
  const hint = "synchronize the clock of this machine (`timedatectl` shows whether it is)";
  return { check, level: offMs < failureMs ? "warn" : "fail", message, hint };
}

/** Warns of http to another machine; `endpoint` is a URL. */
export function checkTransport(endpoint: string | undefined): readonly Diagnosis[] {
  if (endpoint === undefined || !endpoint.startsWith("http:")) return [];
  const { hostname } = new URL(endpoint);
  const isLoopback =
    hostname === "localhost" || hostname.endsWith(".localhost") || hostname === "[::1]" || /^127\./.test(hostname);
  if (isLoopback) return [];
  return [
    {
      check: "transport",
      level: "warn",
      message: "the endpoint is http: whoever is on the way can read what is not sealed, and the names of all objects",
      hint: "use https in `endpoint`, with `ca_file` for a certificate of your own",
    },
  ];
}
