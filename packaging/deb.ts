import { createHash } from "node:crypto";
import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { gzip } from "./archive.ts";
import { layOut, setTimes } from "./lay-out.ts";
import { type PackageFacts, packageVersion } from "./package-facts.ts";
import type { PackageFile } from "./package-files.ts";
import { runTool, sourceDate } from "./run-tool.ts";

const HERE = resolve(import.meta.dir, "deb");

/** Lays out `files` in the empty folder `staging`, and packs them into `out`. */
export async function buildDeb(
  files: readonly PackageFile[],
  facts: PackageFacts,
  staging: string,
  out: string,
): Promise<void> {
  const all = [...files, ...(await debianFiles(facts))];
  await layOut(all, staging, facts.timeSeconds);
  const control = join(staging, "DEBIAN");
  await mkdir(control);
  const put = async (name: string, text: string, mode = 0o644) => {
    await writeFile(join(control, name), text);
    await chmod(join(control, name), mode);
  };
  await put("control", controlText(all, facts));
  await put("conffiles", all.flatMap(({ path, isConfig }) => (isConfig ? [`${path}\n`] : [])).join(""));
  await put("md5sums", all.map(({ path, bytes }) => `${md5(bytes)}  ${path.slice(1)}\n`).join(""));
  for (const name of ["postinst", "prerm", "postrm"]) await put(name, await readFile(join(HERE, name), "utf8"), 0o755);
  await setTimes(staging, facts.timeSeconds);
  const compression = facts.isFast ? ["-Zgzip", "-z1"] : ["-Zxz", "-z6", "--threads-max=1"];
  const command = ["dpkg-deb", "--root-owner-group", ...compression, "--build", staging, out];
  await runTool(command, { env: sourceDate(facts.timeSeconds) });
}

async function debianFiles(facts: PackageFacts): Promise<readonly PackageFile[]> {
  const file = (path: string, bytes: Uint8Array): PackageFile => ({ path, mode: 0o644, bytes, isConfig: false });
  const text = (content: string) => new TextEncoder().encode(content);
  return [
    file("/usr/share/doc/bakelite/changelog.gz", gzip(changelog(facts))),
    file("/usr/share/doc/bakelite/copyright", text(copyright(facts))),
    file("/usr/share/lintian/overrides/bakelite", await readFile(join(HERE, "lintian-overrides"))),
  ];
}

function controlText(files: readonly PackageFile[], facts: PackageFacts): string {
  const kibibytes = files.reduce((sum, { bytes }) => sum + Math.ceil(bytes.byteLength / 1024), 0);
  return `Package: bakelite
Version: ${packageVersion(facts.version)}
Architecture: ${facts.architecture.deb}
Maintainer: ${facts.maintainer}
Installed-Size: ${kibibytes}
Depends: libc6 (>= 2.17)
Suggests: sqlite3
Section: database
Priority: optional
Description: continuous point-in-time backup for SQLite
 One daemon watches the write-ahead log of each configured database and ships
 what was committed within about a second to one or more destinations: a
 directory, S3 and what is compatible with it, SFTP, Google Cloud Storage or
 Azure. Any recorded moment can be restored. Nothing is added to the database,
 and the application is not changed.
`;
}

/** Source: Debian Policy, section 4.4. */
function changelog({ version, maintainer, timeSeconds, changes }: PackageFacts): string {
  const date = new Date(timeSeconds * 1000).toUTCString().replace("GMT", "+0000");
  const items = changes.map((change) => `  * ${wrapped(change, 74).join("\n    ")}`);
  return `bakelite (${packageVersion(version)}) unstable; urgency=medium\n\n${items.join("\n")}\n\n -- ${maintainer}  ${date}\n`;
}

/** Source: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/. */
function copyright({ timeSeconds }: PackageFacts): string {
  return `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: bakelite
Comment: The licenses of what the executable contains beside bakelite are in
 /usr/share/doc/bakelite/THIRD-PARTY-NOTICES.md.gz.

Files: *
Copyright: ${new Date(timeSeconds * 1000).getUTCFullYear()} the bakelite authors
License: Apache-2.0
 On Debian systems, the text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
`;
}

function wrapped(text: string, columns: number): readonly string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/)) {
    if (line !== "" && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line];
}

function md5(bytes: Uint8Array): string {
  return createHash("md5").update(bytes).digest("hex");
}
