"""Advice: candidate recipes tried on a part of the data, and measured on another, before one is recommended."""
