"""Pairs and predictions out to annotation tools, corrected boxes back in: COCO, YOLO, Label Studio, CVAT."""
