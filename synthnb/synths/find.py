"""Where VST3 plugins are, and what their bundles hold."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from synthnb.synths import SynthError, SynthNotFound
from synthnb.synths.host import Host

FOLDERS_VARIABLE = "SYNTHNB_VST3"  # more folders or bundles to look in, separated as in PATH


def folders() -> list[Path]:
    """Where VST3 plugins are on this system, those of `SYNTHNB_VST3` first."""
    own = [Path(text) for text in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if text]
    home = Path.home()
    if sys.platform == "darwin":
        usual = [home / "Library/Audio/Plug-Ins/VST3", Path("/Library/Audio/Plug-Ins/VST3")]
    elif sys.platform == "win32":
        roots = {"LOCALAPPDATA": "Programs/Common/VST3", "COMMONPROGRAMFILES": "VST3"}
        usual = [Path(os.environ[name]) / folder for name, folder in roots.items() if name in os.environ]
    else:
        usual = [home / ".vst3", Path("/usr/lib/vst3"), Path("/usr/local/lib/vst3")]
    return own + usual


def find_plugin(name: str) -> tuple[str, str | None]:
    """Where a plugin is: path of its bundle and, if the bundle holds several, its name there.

    Args:
        name: of the plugin or of its bundle (`Surge XT`), or a path (`/plugins/mda.vst3`), for one of several
            followed by `:` and the name (`/plugins/mda.vst3:mda JX10`).

    Raises:
        SynthNotFound: it isn't there, or there are several and none is chosen.
        SynthError: it is built for other machines.
    """
    path, _, wanted = name.partition(".vst3:")
    if wanted or name.endswith(".vst3"):
        bundles = [Path(f"{path}.vst3" if wanted else path)]
        if not bundles[0].exists():
            raise SynthNotFound(f"{bundles[0]} is not there; give the path of a .vst3")
    else:
        bundles, wanted = [b for folder in folders() for b in _bundles(folder)], name
        bundles.sort(
            key=lambda bundle: bundle.stem.casefold() != name.casefold()
        )  # most bear their plugin's name
    refused = {}
    for bundle in bundles:
        try:
            inside = plugins_in(bundle)
        except SynthError as error:
            refused[bundle] = error
            continue
        if wanted in inside:
            return str(bundle), wanted
        if len(inside) == 1 and (not wanted or bundle.stem.casefold() == wanted.casefold()):
            return str(bundle), inside[0]
        if not wanted:
            raise SynthNotFound(f"{bundle} holds {', '.join(inside)}; choose one: '{bundle}:{inside[0]}'")
    for bundle, error in refused.items():
        if not wanted or path != name or bundle.stem.casefold() == name.casefold():
            raise error
    looked = ", ".join(str(place) for place in (bundles if path != name else folders()))
    raise SynthNotFound(
        f"no VST3 plugin '{wanted}' in {looked}; install it, or say in {FOLDERS_VARIABLE} which folder it is in"
    )


def _bundles(folder: Path) -> list[Path]:
    if folder.suffix == ".vst3":
        return [folder]
    return sorted(folder.rglob("*.vst3")) if folder.is_dir() else []


class Scanner:
    """Lists what bundles hold, in a process of its own: a broken one may crash it."""

    def names(self, bundle: str) -> list[str]:
        """Names of the plugins in a bundle; none if it can't be read."""
        from pedalboard import VST3Plugin

        try:
            return VST3Plugin.get_plugin_names_for_file(bundle)
        except (ImportError, ValueError, RuntimeError):
            return []


def plugins_in(bundle: Path) -> list[str]:
    """Names of the plugins in a `.vst3`. Raises `SynthError` if it is built for other machines or isn't a plugin."""
    built = [
        p.name
        for p in (bundle / "Contents").glob("*")
        if p.name == "MacOS" or p.name.endswith(("-linux", "-win"))
    ]
    system = {"darwin": "MacOS", "win32": f"{platform.machine().lower().replace('amd64', 'x86_64')}-win"}
    needed = system.get(sys.platform, f"{platform.machine()}-linux")
    if built and needed not in built:
        raise SynthError(f"{bundle} is built for {', '.join(sorted(built))}; this machine needs {needed}")
    host = Host("synthnb.synths.find:Scanner", name=str(bundle))
    try:
        names = host.call("names", str(bundle))
    finally:
        host.close()
    if not names:
        raise SynthError(f"{bundle} holds no VST3 plugin that can be loaded; it may be damaged or incomplete")
    return names
