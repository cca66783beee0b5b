"""Phones and boards that are reached by adb or ssh: push, measure, chat, pull."""
