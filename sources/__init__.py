"""Images from elsewhere: downloads, folders of pictures, photos of digits, synthetic digits."""
