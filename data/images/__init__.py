"""Images: decoding, resizing, augmentation, boxes."""
