"""Whole networks that are not tokenizer, plan, backbone and head."""
