"""What every room uses: errors, files, output, progress."""
