"""Convolutions, Darknet's layers, boxes and detection heads."""
