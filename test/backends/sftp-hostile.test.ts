import { describe, expect, test } from "bun:test";
import { Duplex } from "node:stream";
import { readWholeDirectory } from "../../src/storage/sftp/directory.ts";
import { nullIfAnswered, SftpStatusError } from "../../src/storage/sftp/errors.ts";
import { SftpSession } from "../../src/storage/sftp/session.ts";
import { readPieces } from "../../src/storage/sftp/transfer.ts";
import { encodePacket, type Field, PACKET, PacketReader, PacketSplitter, STATUS } from "../../src/storage/sftp/wire.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { withDeadline } from "../support/eventually.ts";
import { fc } from "../support/properties.ts";

/** What a server sends for a request, without its number: a type and the fields after the number. */
type Reply = (type: number, fields: PacketReader) => readonly [number, ...Field[]] | Buffer | null;

/** A session with a server that answers as `reply` says; a Buffer is sent as it is, null is no answer. */
async function sessionWith(reply: Reply, greeting: Buffer = encodePacket(PACKET.version, [3])): Promise<SftpSession> {
  const splitter = new PacketSplitter();
  const channel: Duplex = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, done) {
      for (const packet of splitter.push(chunk)) {
        const fields = new PacketReader(packet);
        const type = fields.u8();
        if (type === PACKET.init) {
          channel.push(greeting);
          continue;
        }
        const id = fields.u32();
        const answer = reply(type, fields);
        if (answer instanceof Buffer) channel.push(answer);
        else if (answer !== null) channel.push(encodePacket(answer[0], [id, ...(answer.slice(1) as Field[])]));
      }
      done();
    },
  });
  return await SftpSession.start(channel, { location: "sftp://u@h:22/p", timeoutMs: 300, onEnd() {} });
}

const OK = [PACKET.status, STATUS.ok, "", ""] as const;
const HANDLE = [PACKET.handle, "h"] as const;
const UNREACHABLE = { code: "storage-unreachable" };

/** A server with one directory that gives these names, for ever when told so. */
function directoryOf(names: readonly (string | Buffer)[], forEver = false): Reply {
  let isRead = false;
  return (type) => {
    if (type === PACKET.opendir) return HANDLE;
    if (type !== PACKET.readdir) return OK;
    if (isRead && !forEver) return [PACKET.status, STATUS.eof, "", ""];
    isRead = true;
    return [PACKET.name, names.length, ...names.flatMap((name): Field[] => [name, "", 0])];
  };
}

describe("an SFTP server that means harm", () => {
  test.each([
    ["a packet of 4 GiB", Buffer.from([0xff, 0xff, 0xff, 0xff, 2])],
    ["an empty packet", Buffer.from([0, 0, 0, 0])],
    ["a text banner", Buffer.from("This account is not available.\n")],
    ["an old version", encodePacket(PACKET.version, [2])],
    ["another type", encodePacket(PACKET.handle, [3])],
    ["an extension that ends in the middle", encodePacket(PACKET.version, [3, "fsync@openssh.com"])],
  ])("greets with %s, and is unreachable", async (_, greeting) => {
    await expect(sessionWith(() => null, greeting)).rejects.toMatchObject(UNREACHABLE);
  });

  test("that never answers is given up after the timeout", async () => {
    const silent = await sessionWith(() => null);
    await expect(withDeadline(silent.lstat("a"), { what: "the end" })).rejects.toMatchObject(UNREACHABLE);
    await expect(sessionWith(() => null, Buffer.alloc(0))).rejects.toMatchObject(UNREACHABLE);
  });

  test("that fails without a reason and is gone when it is asked for one is unreachable, whatever had failed", async () => {
    const gone = Buffer.from([0xff, 0xff, 0xff, 0xff, 2]);
    const failure = [PACKET.status, STATUS.failure, "", ""] as const;
    let lookCount = 0;
    const looking = await sessionWith(() => (++lookCount === 1 ? failure : gone));
    await expect(looking.lstat("/a/b")).rejects.toMatchObject(UNREACHABLE);
    expect(lookCount).toBe(2);
    // A directory that cannot be made: is it there, or is the disk full?
    const greeting = encodePacket(PACKET.version, [3, "statvfs@openssh.com", "2"]);
    for (const ask of [
      (session: SftpSession) => session.lstat("/a").catch(nullIfAnswered),
      (session: SftpSession) => session.statvfs("/a"),
    ]) {
      const making = await sessionWith((type) => (type === PACKET.mkdir ? failure : gone), greeting);
      await expect(making.makeDirectory("/a")).rejects.toBeInstanceOf(SftpStatusError);
      await expect(ask(making)).rejects.toMatchObject(UNREACHABLE);
    }
  });

  test("that answers everything but one request is given up as well", async () => {
    const session = await sessionWith((type) => (type === PACKET.remove ? null : [PACKET.attributes, 0]));
    let isOver = false;
    const stuck = session.remove("a").finally(() => {
      isOver = true;
    });
    stuck.catch(() => {});
    while (!isOver && session.isOpen) {
      await session.lstat("b").catch(() => {});
      await Bun.sleep(5);
    }
    await expect(stuck).rejects.toMatchObject(UNREACHABLE);
  });

  test.each([
    ["more bytes than asked for", [PACKET.data, Buffer.alloc(101)]],
    ["no bytes for ever", [PACKET.data, Buffer.alloc(0)]],
    ["another kind of answer", [PACKET.handle, "h"]],
    ["an answer to nothing", encodePacket(PACKET.data, [99, "x"])],
    ["bytes that are not all there", encodePacket(PACKET.data, [0, 1000])],
  ] as const)("gives %s to a read", async (_, answer) => {
    const session = await sessionWith(() => answer as never);
    await expect(session.read(Buffer.from("h"), 0, 100)).rejects.toMatchObject(UNREACHABLE);
    expect(session.isOpen).toBe(false);
  });

  test("says a size that no file has, or a handle that is too long", async () => {
    const huge = await sessionWith(() => [PACKET.attributes, 1, 2n ** 63n]);
    await expect(huge.lstat("a")).rejects.toMatchObject(UNREACHABLE);
    const handles = await sessionWith(() => [PACKET.handle, Buffer.alloc(257)]);
    await expect(handles.openForReading("a")).rejects.toMatchObject(UNREACHABLE);
  });

  test("ends a file before the size that it told", async () => {
    const session = await sessionWith(() => [PACKET.status, STATUS.eof, "", ""]);
    const reading = readPieces(session, Buffer.from("h"), { start: 0, end: 100, subject: "s", signal: undefined });
    await expect(Array.fromAsync(reading)).rejects.toMatchObject({ code: "io" });
  });

  test.each(["a/b", "../etc", "", "a\0b", "/"])("lists the name %j, and the listing fails", async (name) => {
    const session = await sessionWith(directoryOf(["fine", name]));
    await expect(readWholeDirectory(session, "p", undefined)).rejects.toMatchObject({ code: "io" });
  });

  test("leaves names out that are not UTF-8, and those of the directory and the one above it", async () => {
    const session = await sessionWith(directoryOf([".", "..", "fine", Buffer.from([0xff, 0xfe])]));
    expect((await readWholeDirectory(session, "p", undefined))?.map(({ name }) => name)).toEqual(["fine"]);
  });

  test("lists for ever, and is stopped", async () => {
    const names = Array.from({ length: 8000 }, (_, i) => `name-${i}`);
    const session = await sessionWith(directoryOf(names, true));
    await expect(readWholeDirectory(session, "p", undefined)).rejects.toMatchObject({ code: "io" });
  });

  test("sends a control sequence in a message, which no terminal sees", async () => {
    const session = await sessionWith(() => [PACKET.status, STATUS.failure, "\u001b[2J\u0007", ""]);
    const failure = await session.remove("a").catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(Error);
    expect(failure instanceof Error ? failure.message : "").toContain("\\u001b[2J\\u0007");
  });

  test("sends anything at all, and the session ends or goes on, but nothing else is thrown", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ maxLength: 60 }),
        fc.constantFrom(101, 102, 103, 104, 105, 201),
        async (bytes, type) => {
          const session = await sessionWith(() => {
            const packet = Buffer.concat([Buffer.alloc(9), bytes]);
            packet.writeUInt32BE(packet.byteLength - 4, 0);
            packet[4] = type;
            return packet;
          });
          const calls = [session.lstat("a"), session.readDirectory(Buffer.from("h")), session.statvfs("a")];
          for (const result of await Promise.allSettled(calls))
            if (result.status === "rejected")
              expect(result.reason instanceof BakeliteError || result.reason instanceof SftpStatusError).toBe(true);
          session.end("the test is over");
        },
      ),
      { numRuns: 200 },
    );
  });
});
