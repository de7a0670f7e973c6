"""The commands ``rcnn-export``, ``rcnn-train`` and ``rcnn-verify``: arguments, progress, messages, exit codes.

They call the other folders, and nothing may import from here. What they compute belongs in those folders.
"""
