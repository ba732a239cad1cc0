import { mkdir, readdir, readFile, rename, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { layOut } from "./lay-out.ts";
import { type PackageFacts, packageVersion } from "./package-facts.ts";
import type { PackageFile } from "./package-files.ts";
import { runTool, sourceDate } from "./run-tool.ts";

const ROOT = resolve(import.meta.dir, "..");
/** Folders that are ours alone; the others belong to packages of the distribution. */
const OWN_FOLDERS = [
  "/etc/bakelite",
  "/etc/bakelite/recipes",
  "/etc/bakelite/notify.d",
  "/usr/lib/bakelite",
  "/usr/share/doc/bakelite",
  "/usr/share/doc/bakelite/examples",
  "/usr/share/licenses/bakelite",
];
const TIMERS = "bakelite-check.timer bakelite-verify.timer bakelite-verify-deep.timer bakelite-repair.timer";

/** Lays out `files` in the empty folder `staging`, and packs them into `out`. */
export async function buildRpm(
  files: readonly PackageFile[],
  facts: PackageFacts,
  staging: string,
  out: string,
): Promise<void> {
  const license = {
    path: "/usr/share/licenses/bakelite/LICENSE",
    mode: 0o644,
    bytes: await readFile(join(ROOT, "LICENSE")),
    isConfig: false,
  };
  const all = [...files, license];
  const tree = join(staging, "tree");
  const top = join(staging, "top");
  await mkdir(tree);
  await mkdir(top);
  await layOut(all, tree, facts.timeSeconds);
  const spec = join(staging, "bakelite.spec");
  await writeFile(spec, specText(all, facts));
  const defines = {
    _topdir: top,
    tree,
    // What would say where and when it was packed.
    _buildhost: "localhost",
    use_source_date_epoch_as_buildtime: "1",
    clamp_mtime_to_source_date_epoch: "1",
    source_date_epoch_from_changelog: "0",
    _binary_payload: facts.isFast ? "w1.zstdio" : "w19.zstdio",
    // It would be the machine's that packs, and `strip` cuts the program off its runtime.
    __os_install_post: "%{nil}",
    _build_id_links: "none",
    debug_package: "%{nil}",
  };
  const given = Object.entries(defines).flatMap(([name, value]) => ["--define", `${name} ${value}`]);
  await runTool(["rpmbuild", "-bb", ...given, "--target", `${facts.architecture.rpm}-linux`, spec], {
    env: { ...sourceDate(facts.timeSeconds), HOME: staging },
  });
  const folder = join(top, "RPMS", facts.architecture.rpm);
  const [made] = await readdir(folder);
  if (made === undefined) throw new Error("rpmbuild made nothing");
  await rename(join(folder, made), out);
}

function specText(files: readonly PackageFile[], { version, maintainer, timeSeconds, changes }: PackageFacts): string {
  const listed = files.map(({ path, mode, isConfig }) => {
    const kind = isConfig
      ? "%config(noreplace) "
      : path.startsWith("/usr/share/licenses/")
        ? "%license "
        : /^\/usr\/share\/(?:doc|man)\//.test(path)
          ? "%doc "
          : "";
    return `${kind}%attr(${mode.toString(8).padStart(4, "0")},root,root) "${path}"`;
  });
  const [weekday = "", day = "", month = "", year = ""] = new Date(timeSeconds * 1000)
    .toUTCString()
    .replace(",", "")
    .split(" ");
  return `Name: bakelite
Version: ${packageVersion(version)}
Release: 1
Summary: Continuous point-in-time backup for SQLite
License: Apache-2.0
Group: Applications/Databases
Packager: ${maintainer}
AutoReqProv: no
Requires: /bin/sh
Requires: glibc >= 2.17

%description
One daemon watches the write-ahead log of each configured database and ships
what was committed within about a second to one or more destinations: a
directory, S3 and what is compatible with it, SFTP, Google Cloud Storage or
Azure. Any recorded moment can be restored. Nothing is added to the database,
and the application is not changed.

%install
mkdir -p %{buildroot}
cp -a %{tree}/. %{buildroot}/

%post
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi

%preun
# The last one goes, and not an old one because a new one is there.
if [ "$1" -eq 0 ] && [ -d /run/systemd/system ]; then
  systemctl --no-reload disable --now bakelite.service ${TIMERS} >/dev/null 2>&1 || :
  systemctl stop 'bakelite-*.service' || :
fi

%postun
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || :
  # After an upgrade: what runs goes on with the new version, and what does not is left alone.
  if [ "$1" -ge 1 ]; then systemctl try-restart bakelite.service || :; else systemctl reset-failed 'bakelite*' 2>/dev/null || :; fi
fi

%files
${OWN_FOLDERS.map((path) => `%dir %attr(0755,root,root) "${path}"`).join("\n")}
${listed.join("\n")}

%changelog
* ${weekday} ${month} ${day} ${year} ${maintainer} - ${packageVersion(version)}-1
${changes.map((change) => `- ${change.replaceAll("%", "%%")}`).join("\n")}
`;
}
