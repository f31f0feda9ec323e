"""Media: video files in and out, and the codecs between pictures, sound and model values. Knows no world."""
