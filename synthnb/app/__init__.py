"""The app: choose a sound, match it, listen, download the preset."""

from synthnb.app.match import MatchApp, download, players

__all__ = ["MatchApp", "download", "players"]
