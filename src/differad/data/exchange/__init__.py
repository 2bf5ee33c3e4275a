"""Export of pairs and predictions to annotation tools and import of corrected boxes: COCO, YOLO, Label Studio, CVAT."""
